"""`unrolled list`."""

from __future__ import annotations

import json as json_module

from unrolled.commands.settings import AsJson


def list_(pattern: str = "*", *, json: AsJson = False) -> None:
    """List this package's models: name, parameters, source and the weights that can be had.

    Every other timm model can be used too (`timm:NAME`), and Hugging Face ones (`hf:ORG/NAME`).

        unrolled list
        unrolled list "crate_*_224" --json

    Parameters
    ----------
    pattern
        Names to show, with the wildcards * and ?.
    """
    from unrolled.models import list_models

    models = list_models(pattern)
    if not models:
        names = [model.name for model in list_models()]
        raise ValueError(f"pattern={pattern!r} matches no model; there are {', '.join(names)}")
    if json:
        print(json_module.dumps([model._asdict() for model in models], indent=2))
        return
    width = max(len(model.name) for model in models)
    print(f"{'name':<{width}}  {'parameters':>11}  {'weights':<8}  source")
    for model in models:
        print(f"{model.name:<{width}}  {model.parameters:>11,}  {model.weights or '-':<8}  {model.source}")
