"""Fast arithmetic without parameters, each with a slow twin it is tested against."""

from unrolled.ops.mesa_solve import MesaPlan, MesaState, mesa, mesa_plan

__all__ = ["MesaPlan", "MesaState", "mesa", "mesa_plan"]
