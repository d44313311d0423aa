"""Names of `studies.mesa` for studies that do not yet compute by cells."""

from unrolled.studies.mesa.held_out import TEST_SEED, TUNE_SEED, position_losses

__all__ = ["TEST_SEED", "TUNE_SEED", "position_losses"]
