"""What the verbs that run a model share: opening it, its images, the device, and the run folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from unrolled.trust import KINDS_OF_MODELS, check, consequence

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unrolled.data import Batch, ImageSource
    from unrolled.instruments.features.parts import Processes
    from unrolled.report import Report

Device = Literal["auto", "cpu", "cuda", "mps"]
T = TypeVar("T")


def check_counts(least: int = 1, **given: int | None) -> None:
    """Refuse flags that are below `least`; None is a flag that was not given.

    Raises:
        ValueError: naming the first of them.
    """
    for name, value in given.items():
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give at least {least}")


def open_model(
    spec: str,
    *,
    weights: Path | None = None,
    pretrained: bool = False,
    model_args: dict[str, Any] | None = None,
    classes: int | None = None,
    seed: int,
) -> nn.Module:
    """The model a verb's MODEL argument means, in eval mode: a string of `resolve_model`, or simply a folder.

    Args:
        spec: as in `resolve_model`; the path of a run folder or of a saved model is `local:` of it.
        weights: load these instead of the model's own.
        pretrained: load the weights timm or the hub has for a registered name. Folders, `hf:` models and names of
            weights that ship with this package always come with theirs.
        model_args: the model's own arguments.
        classes: outputs of the head of a model that is built from its name and filled with `weights`, where those do
            not say it.
        seed: of weights that are not loaded; the global random state is set by it.

    Raises:
        ValueError: unknown model, a language model, or `weights` have another head.
    """
    import torch

    from unrolled.models import load_weights
    from unrolled.models.resolve import resolve_model
    from unrolled.models.transfer import weights_classes

    spec = named(spec)
    arguments = dict(model_args or {})
    if weights is not None and classes is not None and not spec.startswith(("local:", "hf:")):
        own_classes = weights_classes(weights)
        arguments.setdefault("num_classes", classes if own_classes is None else len(own_classes))
    own = weights is None and (pretrained or spec.startswith(("local:", "hf:")) or shipped(spec) is not None)
    torch.manual_seed(seed)
    try:
        model = resolve_model(spec, pretrained=own, **arguments)
    except ValueError as error:
        if not str(error).startswith("model_args: "):
            raise
        raise ValueError(f"--model-args{str(error).removeprefix('model_args')}") from error
    takes_images(spec, model)
    if weights is not None:
        report = load_weights(model, weights)
        refused = {key: how for key, how in report.reshaped.items() if how.startswith("not loaded")}
        if refused:
            detail = "; ".join(f"{key} {how.removeprefix('not loaded: ')}" for key, how in refused.items())
            raise ValueError(f"weights: the head does not fit ({detail}); give --model-args.num-classes")
        print(f"weights: {report}", file=sys.stderr)
    elif not own and (":" not in spec or spec.startswith("timm:")):
        advice = "--pretrained, or a folder in place of the name, gives it trained ones"
        print(f"note: {spec} has random weights; {advice}", file=sys.stderr)
    return model.eval()


def takes_images(spec: str, model: nn.Module) -> None:
    """Refuse a language model of this package where images are to be shown.

    Raises:
        ValueError: it is one.
    """
    from unrolled.models import LanguageModel

    if isinstance(model, LanguageModel):
        raise ValueError(
            f"model: {spec.removeprefix('local:')} is a language model; this takes models of images (`unrolled eval` "
            "measures language models)"
        )


def shown_everything(model: nn.Module) -> nn.Module:
    """The model itself; of a masked autoencoder, which removes patches by chance, one that encodes whole images."""
    from unrolled.models.masked import whole_images

    return whole_images(model)


def named(spec: str) -> str:
    """`spec`, with `local:` in front if it is a path or the name of a folder."""
    path = ":" not in spec and ("/" in spec or os.sep in spec)
    path = path or (spec.partition(":")[0] not in KINDS_OF_MODELS and Path(spec).expanduser().is_dir())
    return f"local:{spec}" if path else spec


def run_settings(spec: str) -> dict[str, Any]:
    """The `config.yaml` of the run folder a MODEL argument means; empty for any other model.

    Raises:
        CorruptFile: there is one that cannot be read, or that does not say what the run was.
    """
    from unrolled.reading import read_settings
    from unrolled.train.config_files import run_values

    spec = named(spec)
    path = Path(spec.removeprefix("local:")).expanduser() / "config.yaml"
    if not spec.startswith("local:") or not os.path.lexists(path):
        return {}
    return run_values(read_settings(path), path)


def shipped(spec: str) -> str | None:
    """The tag of weights that ship with this package, if `spec` names them: what they were trained on."""
    name = spec.removeprefix("timm:")
    there = "/" not in name and (Path(__file__).resolve().parents[1] / "weights" / f"{name}.safetensors").is_file()
    return name.split(".", 1)[1] if there else None


def data_settings(
    model: str, weights: Path | None, *, data: str | None, data_dir: Path | None, image_size: int | None
) -> dict[str, Any]:
    """`data`, `data_dir`, `image_size`, and the `split_seed` and `val_fraction` that divide the data.

    What is not given is taken from the run the weights are from. Above all the division is: under another seed, images
    the run was trained on would be among those it is tested on.

    Raises:
        UnsafeFile: the run's data are an address, which no file may open.
    """
    run = (run_settings(str(weights)) if weights is not None else {}) or run_settings(model)
    if not run and (tag := shipped(model if weights is None else str(weights))) is not None:
        run = {"data": tag}
    if data is None:
        check("data", run.get("data"), f"the config.yaml of {model if weights is None else weights}")
    chosen = data or run.get("data") or "digits"
    same = chosen == run.get("data")
    if data_dir is None and same and run.get("data_dir"):
        data_dir = Path(run["data_dir"])
    return {
        "data": chosen,
        "data_dir": data_dir,
        "image_size": image_size or run.get("image_size"),
        "split_seed": run.get("split_seed", 0) if same else 0,
        "val_fraction": run.get("val_fraction", 0.0) if same else 0.0,
    }


def class_names(
    network: nn.Module, model: str, *, weights: Path | None, pretrained: bool = False
) -> list[tuple[str, ...]]:
    """What the outputs of a classifier stand for, in their order, by every naming that is known; empty if none is.

    Args:
        network: the classifier.
        model, weights, pretrained: what it was opened from.
    """
    from unrolled.models.transfer import weights_classes

    count = int(getattr(network, "num_classes", 0) or getattr(network, "num_labels", 0) or 0)
    spec = named(model)
    trained = pretrained or spec.startswith(("local:", "hf:")) or shipped(spec) is not None
    found: list[Any] = []
    if weights is not None:
        found.append(weights_classes(weights))
    elif trained:
        found.append((getattr(network, "pretrained_cfg", None) or {}).get("label_names"))
        labels = getattr(getattr(network, "config", None), "id2label", None) or {}
        found.append([labels[number] for number in sorted(labels)])
        if pretrained and count == 1000 and spec.removeprefix("timm:").find(":") < 0:
            from timm.data import ImageNetInfo

            info = ImageNetInfo()
            described = [info.index_to_description(number) for number in range(count)]
            found += [[name.split(",")[0] for name in described], info.label_names(), described]
    if not any(found):
        found.append(_classes_of_run(model, weights))
    return [names for names in (tuple(map(str, each or ())) for each in found) if names and len(names) == count]


def _classes_of_run(model: str, weights: Path | None) -> list[str]:
    """Of a run folder that does not name its classes: those of its data, if they are there."""
    from unrolled.data import open_images
    from unrolled.errors import MissingData, MissingExtra

    run = (run_settings(str(weights)) if weights is not None else {}) or run_settings(model)
    if run.get("data"):
        own = data_settings(model, weights, data=None, data_dir=None, image_size=None)
        with contextlib.suppress(MissingData, MissingExtra, OSError, ValueError):  # only the names are then missing
            return list(open_images(own["data"], "train", data_dir=own["data_dir"], seed=own["split_seed"]).classes)
    return []


def by_class_names(
    source: ImageSource, namings: list[tuple[str, ...]], *, what: str, by: Literal["name", "number"] = "name"
) -> tuple[ImageSource, str]:
    """`source` with the labels that a model has for its classes, and a note if that changed something.

    Args:
        source: images and labels.
        namings: as from `class_names`; the one that knows most of the classes counts.
        what: the model, for messages.
        by: "number" leaves the labels as they are, and so it is for classes that have numbers and no names.

    Raises:
        ValueError: none of the images is of a class that the model knows.
    """
    from unrolled.data.classes import by_name, numbers_of

    numbered = list(source.classes) == [str(number) for number in range(len(source.classes))]
    if by == "number" or not namings:
        return source, ""
    known = max(namings, key=lambda names: int((numbers_of(source.classes, names) >= 0).sum()))
    if numbered and numbers_of(source.classes, known).max(initial=-1) < 0 and len(source.classes) <= len(known):
        return source, ""
    return by_name(source, known, what=what)


def images_of(own: Mapping[str, Any], split: Any, *, quiet: bool) -> ImageSource:
    """The images that a verb which looks at no labels takes, from what `data_settings` returned; said on stderr."""
    from unrolled.data import open_images

    source = open_images(
        own["data"], split, data_dir=own["data_dir"], val_fraction=own["val_fraction"], seed=own["split_seed"],
        unknown_classes="skip",
    )  # fmt: skip
    say_data(quiet=quiet, **{split: source})
    return source


def say_data(*, quiet: bool, **parts: ImageSource | None) -> None:
    """Say on stderr what was read, in one line, and what makes its scores mean little."""
    from unrolled.data.classes import said_of

    if not quiet:
        print(f"data: {said_of(**parts)}", file=sys.stderr)


def choose_device(choice: Device) -> torch.device:
    """The device a `--device` flag means.

    Raises:
        ValueError: it is not there.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if choice == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
    if not there[choice]:
        raise ValueError(f"--device {choice}: torch sees none on this machine; use --device cpu (`unrolled doctor`)")
    return torch.device(choice)


@contextlib.contextmanager
def sharing(choice: Device) -> Iterator[tuple[torch.device, Processes]]:
    """This process's device, and the processes torchrun started with it (only itself without torchrun)."""
    from unrolled.instruments.features.parts import Processes

    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield choose_device(choice), Processes()
        return
    import torch
    from lightning_fabric import Fabric

    from unrolled.train.engine import pick_accelerator

    local = int(os.environ["LOCAL_WORLD_SIZE"])
    accelerator = pick_accelerator(choice, local)
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    fabric = Fabric(accelerator=accelerator, devices=local, num_nodes=nodes, strategy="ddp")
    fabric.launch()
    try:
        yield fabric.device, Processes(fabric.global_rank, fabric.world_size, fabric.barrier)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def batches(
    model: nn.Module,
    source: ImageSource,
    *,
    image_size: int | None,
    batch_size: int,
    workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
) -> Iterable[Batch]:
    """All images of `source` in order, preprocessed as `model` expects."""
    from unrolled.data import eval_loader, eval_transform, model_input

    expects = model_input(model, native_size=source.native_size, image_size=image_size)
    transform = eval_transform(
        expects["input_size"],
        expects["mean"],
        expects["std"],
        interpolation=expects["interpolation"],
        crop_pct=expects["crop_pct"],
    )
    return eval_loader(source, transform, batch_size=batch_size, workers=workers, on_error=on_error)


def drawn(samples: int | None, there: int) -> dict[str, int]:
    """What `--samples` adds to a result: how many were asked for, and of how many; nothing without the flag."""
    return {} if samples is None else {"samples": samples, "samples_of": there}


def of_all(result: Mapping[str, Any]) -> str:
    """What such a result says after a number of samples: `` drawn evenly from 10,000``, or nothing."""
    return f" drawn evenly from {result['samples_of']:,}" if "samples_of" in result else ""


@contextlib.contextmanager
def saying_how_to_resume(verb: str, out: Path, model: str) -> Iterator[None]:
    """Add the command that goes on with the run of `model` in `out` to what an interrupted one says."""
    from unrolled.train.signals import Interrupted

    try:
        yield
    except Interrupted as stop:
        command = f"unrolled {verb} --config {shlex.quote(str(out / 'config.yaml'))} --resume auto"
        if consequence("model", model) is not None:  # the file may not name code: the person does
            command += f" --model {shlex.quote(model)}"
        raise Interrupted(f"{stop}, or: {command}") from None


def progress(items: Iterable[T], *, total: int | None, what: str, quiet: bool) -> Iterator[T]:
    """`items` with a bar on stderr, counted in batches."""
    from tqdm import tqdm

    # None: no bar where stderr is not a terminal
    yield from tqdm(items, total=total, desc=what, unit="batch", disable=quiet or None, file=sys.stderr, leave=False)


_SUBJECT = (
    *("image", "images", "model", "weights", "pretrained", "model_args"),
    *("data", "data_dir", "split", "stride", "labels"),
)


def default_folder(verb: str, model: str, data: str, subject: Mapping[str, Any] | None = None) -> Path:
    """`runs/VERB-MODEL-DATA`, of a folder its name alone; other characters than A-Z a-z 0-9 . _ become dashes.

    Args:
        verb: of the command.
        model: its MODEL argument.
        data: what it looks at.
        subject: settings, of which those of the model and of what it looks at count. Where that folder holds the
            result of others, because names in different folders are alike, the next free one is taken: `...-2`.
    """
    spec = named(model)
    parts = [Path(spec.removeprefix("local:")).name if spec.startswith("local:") else spec, data]
    name = "-".join([verb, *(_short(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.")) for part in parts)])
    folder, number = Path("runs") / name, 1
    if subject is not None:
        wanted = {key: _plain(subject[key]) for key in _SUBJECT if key in subject}
        while (folder / "config.yaml").is_file() and wanted != _subject_in(folder):
            number += 1
            folder = Path("runs") / f"{name}-{number}"
    return folder


def _short(name: str) -> str:
    """At most 80 letters: systems of files take 255, and a name may be as long already."""
    return name if len(name) <= 80 else f"{name[:71]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _subject_in(folder: Path) -> dict[str, Any]:
    from unrolled.errors import CorruptFile
    from unrolled.reading import read_settings

    with contextlib.suppress(OSError, CorruptFile):
        settings = read_settings(folder / "config.yaml")
        return {key: settings[key] for key in _SUBJECT if key in settings}
    return {}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write `config.yaml`, which `--config` reads again; from now on the folder is this verb's."""
    import yaml

    from unrolled.locks import hold

    hold(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({key: _plain(value) for key, value in settings.items()}, sort_keys=False)
    (folder / "config.yaml").write_bytes(text.encode("utf-8", "backslashreplace"))


def write_run(folder: Path, settings: Mapping[str, Any], report: Report) -> Path:
    """Write `config.yaml` and the report; return the path of `report.html`."""
    write_settings(folder, settings)
    return report.write(folder).html


def say_where(report: Path, *, quiet: bool) -> None:
    """Say on stderr where the report is."""
    if not quiet:
        print(f"report: {report}", file=sys.stderr)


def table(columns: list[str], rows: list[list[str]], *, left: int = 1) -> str:
    """Rows under their columns, aligned to the right except for the first `left`."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = []
    for row in [columns, *rows]:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
