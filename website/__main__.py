"""`python -m website [--out site]`: put the pages together, build them, and refuse warnings and broken links."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from website import checks
from website.assemble import ROOT, assemble

_SHIM = "https://unpkg.com/iframe-worker/shim"
_MATH = re.compile(r"<(div|span) class=\"arithmatex\">\\(?:\[|\()(.*?)\\(?:\]|\))</\1>", flags=re.DOTALL)


def build(out: Path, work: Path = ROOT / "build/website") -> list[str]:
    """Build the site at `out`; what is wrong with it, a line each."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        config = assemble(work / "pages", run=True)
    except ValueError as error:
        return [str(error)]
    config |= {"site_dir": "site"}
    config["plugins"][-1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
    (work / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    shutil.rmtree(work / "site", ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(work / "mkdocs.yml")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=work)
    said = [line for line in _plain(ran.stdout + ran.stderr).partition("Traceback")[0].splitlines() if line.strip()]
    if ran.returncode or any("warning" in line.lower() for line in said):
        return said
    finish(work / "site")
    wrong = [*checks.broken(work / "site"), *checks.asked_of_others(work / "site"), *checks.untranslated(work / "site")]
    if not wrong:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(work / "site", out)
    return wrong


def finish(site: Path) -> None:
    """What the generator leaves to others: formulas as MathML, and the search's helper from this folder."""
    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        tex = match[2].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
        tex = tex.replace(r"\arg", r"\mathrm{arg}\,")  # which the converter does not know
        return f'<{match[1]} class="formula">{convert(tex, display=display)}</{match[1]}>'

    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        depth = "../" * (len(path.relative_to(site).parts) - 1)
        text = text.replace(_SHIM, f"{depth}assets/iframe-worker.js")
        path.write_text(_MATH.sub(formula, text), encoding="utf-8")


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder of the finished site (default: site)")
    given = parser.parse_args()
    wrong = build(given.out)
    print("\n".join(wrong) if wrong else f"{given.out / 'index.html'}")
    sys.exit(1 if wrong else 0)
