"""The notebooks: scripts in `notebooks/`, run by a Jupyter kernel, written as pages with what their cells gave."""

from __future__ import annotations

import contextlib
import html
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
SECONDS = 600  # for one cell, on a machine that is busy with other things
_TOGETHER = 2  # kernels at a time, of one thread each

_RELATIVE = re.compile(r"\[((?:[^\]\[]|\[[^\]]*\])*)\]\((?!https?://)[^)]*\)")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # another one at every build
_DESCRIPTION = re.compile(r"<desc[^>]*>(.*?)</desc>", flags=re.DOTALL)


def scripts() -> list[Path]:
    """Every notebook: a script of cells that begin with `# %%`."""
    return sorted(FOLDER.glob("*.py"))


def read(path: Path) -> Any:
    """A script as a notebook of the format 4."""
    import jupytext

    return jupytext.read(path, fmt="py:percent")


def run(paths: list[Path]) -> dict[Path, Any]:
    """The notebooks with what their cells gave; each in a kernel and an empty folder of its own, offline.

    Raises:
        ValueError: a cell fails or writes to stderr; the notebook is named.
    """
    with ThreadPoolExecutor(_TOGETHER) as pool, tempfile.TemporaryDirectory() as empty, _kernels_of_this_python(empty):
        return dict(zip(paths, pool.map(partial(_run, sockets=Path(empty)), paths), strict=True))


def _run(path: Path, sockets: Path) -> Any:
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from traitlets.config import Config

    notebook = read(path)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, kernel_name="python3", timeout=SECONDS, startup_timeout=SECONDS, record_timing=False,
            resources={"metadata": {"path": folder}},
            config=Config(KernelManager={"transport": "ipc", "ip": str(sockets / path.stem)}),  # no port for others
        )  # fmt: skip
        try:
            client.execute()
        except CellExecutionError as error:
            raise ValueError(f"notebooks/{path.name}: {error}") from None
    return notebook


@contextlib.contextmanager
def _kernels_of_this_python(empty: str) -> Iterator[None]:
    """Kernels run this checkout in this Python, whatever a person has installed for Jupyter, and ask no hub."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ours = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "JUPYTER_DATA_DIR": empty}
    ours |= {"PYTHONWARNINGS": "ignore:IProgress not found"}  # of tqdm, where there are no ipywidgets
    ours |= {"JUPYTER_CONFIG_DIR": empty, "JUPYTER_RUNTIME_DIR": empty, "IPYTHONDIR": empty, "JUPYTER_PATH": ""}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def page(notebook: Any, name: str, out: Path, translated: Callable[[str], str]) -> str:
    """A notebook as Markdown; its figures, the script and the notebook itself are written into `out`.

    Args:
        notebook: run or not.
        name: of the script, without `.py`.
        out: the folder of the page.
        translated: what makes links of the repository those of the site.

    Raises:
        ValueError: an output that a page cannot show in light and dark, such as a bitmap, or text on stderr.
    """
    import jupytext

    out.mkdir(parents=True, exist_ok=True)
    links = f"[As a notebook]({name}.ipynb), [as a script]({name}.py)."
    parts = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(translated(cell.source))
        else:
            parts.append(f"```python\n{cell.source}\n```")
            parts += [_shown(output, f"{name}-{number}", out) for output in _joined(cell.outputs)]
        if number == 0:
            parts.append(links)
    (out / f"{name}.py").write_text((FOLDER / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":  # taken elsewhere, its links would lead nowhere
            cell.source = _RELATIVE.sub(r"\1", cell.source)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    jupytext.write(notebook, out / f"{name}.ipynb")
    return "\n\n".join(parts) + "\n"


def _joined(outputs: list[Any]) -> list[Any]:
    """The outputs of a cell, with what was printed at several moments in one piece."""
    joined: list[Any] = []
    for output in outputs:
        stream = output.get("name")
        if joined and stream and joined[-1].get("name") == stream:
            joined[-1] = type(output)(output | {"text": joined[-1]["text"] + output["text"]})
        else:
            joined.append(output)
    return joined


def _shown(output: Any, name: str, out: Path) -> str:
    """An output as Markdown: a drawing, a table, or text."""
    if output.output_type == "stream" and output.name == "stdout":
        return _box(f"```text\n{output.text.rstrip()}\n```")
    data = output.get("data", {})
    if drawing := data.get("image/svg+xml"):
        (out / f"{name}.svg").write_text(drawing, encoding="utf-8")
        description = _DESCRIPTION.search(drawing)
        words = " ".join(html.unescape(description[1]).split()) if description else ""
        return f"![{words.replace('[', '(').replace(']', ')')}]({name}.svg)"
    if table := data.get("text/html"):
        return f'<div class="output">{table}</div>'
    if not any(kind.startswith("image/") for kind in data) and not _ADDRESS.search(data.get("text/plain", " at 0x0")):
        return _box(f"```text\n{data['text/plain']}\n```")
    content = output.get("text") or ", ".join(data) or output.output_type
    raise ValueError(f"{name}: a page shows text, tables and panels of unrolled.figures, not this: {content}")


def _box(text: str) -> str:
    return f'<div class="output" markdown>\n\n{text}\n\n</div>'
