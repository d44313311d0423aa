"""Matplotlib figures as small SVG drawings that follow the page: colours are classes, text is text, nothing moves.

A renderer of our own instead of Matplotlib's: its SVG names each colour, brings a date, a description of itself, shapes
that are defined once and used elsewhere, and clipping paths, and is three times as long. What is written here consists
of `path`, `image` and `text` alone, so that a page may refuse everything else, and is the same on every machine: texts
are measured by the widths of Matplotlib's own font, whatever fonts there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import to_hex
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.transforms import Affine2D

from unrolled.figures.addresses import data_address
from unrolled.figures.escaping import escape
from unrolled.figures.style import NAMES, SIZE, TITLE
from unrolled.figures.words import width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ANCHORS = {"left": "", "center": ' text-anchor="middle"', "right": ' text-anchor="end"'}


def body(figure: Figure) -> str:
    """What stands inside the `<svg>` of a figure of 72 dots an inch, one unit a dot."""
    renderer = _Renderer(*figure.bbox.size)
    figure.draw(renderer)  # type: ignore[arg-type]
    return renderer.text()


def _short(value: float) -> str:
    text = f"{value:.1f}"
    return text.removesuffix(".0") if text != "-0.0" else "0"


class _Renderer(RendererBase):
    """Collects shapes, then texts, which stand above them."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__()
        self._size = (float(width), float(height))
        self._shapes: list[tuple[str, str]] = []  # look, commands
        self._texts: list[str] = []
        self._groups: list[bool] = []
        self._description: str | None = None

    def text(self) -> str:
        """All elements; neighbours of one look are one path."""
        out: list[str] = []
        look, commands = "", ""
        for other, more in [*self._shapes, ("", "")]:
            if other != look or not look:
                out += [f'<path{look} d="{commands}"/>'] if look else []
                out += [more] if not other else []
                look, commands = other, ""
            commands += more
        return "".join(out + self._texts)

    def get_canvas_width_height(self) -> tuple[float, float]:
        """Both in dots."""
        return self._size

    def get_text_width_height_descent(self, s: str, prop: FontProperties, ismath: Any) -> tuple[float, float, float]:
        """Of one line."""
        size = prop.get_size_in_points()
        return width(s, size, bold=_bold(prop)), 0.96 * size, 0.21 * size

    def option_scale_image(self) -> bool:
        """Images come as they are."""
        return True

    def option_image_nocomposite(self) -> bool:
        """Images stay apart."""
        return True

    def open_group(self, s: str, gid: str | None = None) -> None:
        """What an artist's `gid` says is shown when it is pointed at."""
        self._description = gid if s == "QuadMesh" else None
        self._groups.append(gid is not None and self._description is None)
        if self._groups[-1]:
            self._shapes.append(("", f"<g><title>{escape(str(gid))}</title>"))

    def close_group(self, s: str) -> None:
        """Close what `open_group` opened."""
        if self._groups.pop():
            self._shapes.append(("", "</g>"))

    def draw_path(self, gc: Any, path: Path, transform: Any, rgbFace: Any = None) -> None:
        """A line, or an area."""
        clip = gc.get_clip_rectangle() if rgbFace is None else None
        self._add(gc, rgbFace, self._commands(path, transform, None if clip is None else clip.extents))

    def draw_markers(
        self, gc: Any, marker_path: Path, marker_trans: Any, path: Path, trans: Any, rgbFace: Any = None
    ) -> None:
        """The same mark at many points, as one path."""
        clip, size = gc.get_clip_rectangle(), marker_trans.transform([(1.0, 1.0), (0.0, 0.0)])
        reach = size[0, 0] - size[1, 0]
        if len(np.asarray(marker_path.vertices)) < 3:
            rgbFace = None  # a dash has no area
        commands = ""
        for vertices, _ in path.iter_segments(trans, simplify=False):
            x, y = vertices[-2:]
            if not (np.isfinite(x) and np.isfinite(y)):
                continue
            if clip is not None and not (clip.x0 - 1 <= x <= clip.x1 + 1 and clip.y0 - 1 <= y <= clip.y1 + 1):
                continue
            if marker_path is Path.unit_circle():
                r, y = _short(reach), self._size[1] - y
                around = f"{r} {r} 0 1 0 "
                commands += (
                    f"M{_short(x - reach)} {_short(y)}a{around}{_short(2 * reach)} 0a{around}{_short(-2 * reach)} 0z"
                )
            else:
                commands += self._commands(marker_path, marker_trans + Affine2D().translate(x, y), None)
        self._add(gc, rgbFace, commands)

    def draw_image(self, gc: Any, x: float, y: float, im: Any, transform: Any = None) -> None:
        """Pixels [h, w, 4], the lowest row first where there is no transform."""
        height, across = im.shape[:2]
        place = Affine2D() if transform is None else Affine2D().scale(1 / across, 1 / height) + transform
        (x0, y0), (x1, y1) = place.transform(np.array([(0, 0), (across, height)])) + np.array([x, y])
        pixels = im if y1 < y0 else im[::-1]
        top = self._size[1] - max(y0, y1)
        where = f'x="{_short(x0)}" y="{_short(top)}" width="{_short(x1 - x0)}" height="{_short(abs(y1 - y0))}"'
        small = ' class="small"' if max(height, across) < max(x1 - x0, abs(y1 - y0)) else ""
        stretch = ' preserveAspectRatio="none"'
        self._shapes.append(("", f'<image{small} {where}{stretch} href="{data_address(pixels)}"/>'))

    def draw_quad_mesh(
        self, gc: Any, master_transform: Any, meshWidth: int, meshHeight: int, coordinates: Any, offsets: Any,
        offsetTrans: Any, facecolors: Any, antialiased: Any, edgecolors: Any,
    ) -> None:  # fmt: skip
        """Level cells of a grid; each line of the mesh's `gid` is what one of them says when it is pointed at."""
        corners = master_transform.transform(np.asarray(coordinates).reshape(-1, 2)).reshape(*coordinates.shape[:2], 2)
        xs, ys = corners[0, :, 0], self._size[1] - corners[:, 0, 1]
        words = self._description.split("\n") if self._description else []
        cells = []
        for n, (i, j) in enumerate(np.ndindex(meshHeight, meshWidth)):
            if facecolors[n][3] > 0:
                x, y = _short(min(xs[j : j + 2])), _short(min(ys[i : i + 2]))
                size = f'width="{abs(xs[j + 1] - xs[j]):.2f}" height="{abs(ys[i + 1] - ys[i]):.2f}"'
                title = f"<title>{escape(words[n])}</title>" if words else ""
                cells.append(f'<rect x="{x}" y="{y}" {size} fill="{to_hex(facecolors[n])}">{title}</rect>')
        self._shapes.append(("", f'<g shape-rendering="crispEdges">{"".join(cells)}</g>'))

    def draw_text(
        self,
        gc: Any,
        x: float,
        y: float,
        s: str,
        prop: FontProperties,
        angle: float,
        ismath: Any = False,
        mtext: Any = None,
    ) -> None:
        """One line, anchored where it is aligned so that other fonts keep it in place."""
        anchor = ""
        if mtext is not None and (angle == 0 or mtext.get_rotation_mode() == "anchor"):
            anchor = _ANCHORS[mtext.get_horizontalalignment()]
            if anchor and angle == 0:
                x += width(s, prop.get_size_in_points(), bold=_bold(prop)) / (2 if "middle" in anchor else 1)
            elif anchor:
                x, y = mtext.get_transform().transform(mtext.get_unitless_position())
                y = self._size[1] - y
        size, bold, colour = prop.get_size_in_points(), _bold(prop), to_hex(gc.get_rgb())
        classes = ["title"] if size == TITLE and bold else ["label"] if bold else []
        style = "" if classes == ["title"] or size == SIZE else f"font-size:{_short(size)}px;"
        if colour not in NAMES:
            style += f"fill:{colour}"
        elif classes != ["title"] and NAMES[colour] != "soft":
            classes.append(f"f-{NAMES[colour]}")
        look = (f' class="{" ".join(classes)}"' if classes else "") + (f' style="{style.rstrip(";")}"' if style else "")
        turn = f' transform="rotate({_short(-angle)} {_short(x)} {_short(y)})"' if angle else ""
        self._texts.append(f'<text{look} x="{_short(x)}" y="{_short(y)}"{anchor}{turn}>{escape(s)}</text>')

    def _commands(self, path: Path, transform: Any, clip: Any) -> str:
        out, height = [], self._size[1]
        letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
        for vertices, code in path.iter_segments(transform, clip=clip, simplify=None, remove_nans=True):
            if code == Path.CLOSEPOLY:
                out.append("z")
            elif code in letters:
                points = " ".join(
                    _short(v if i % 2 == 0 else height - v) for i, v in enumerate(np.asarray(vertices, np.float64))
                )
                out.append(letters[code] + points)
        return "".join(out)

    def _add(self, gc: Any, face: Any, commands: str) -> None:
        if not commands:
            return
        classes, style, look = [], "", ""
        alpha = gc.get_alpha() if gc.get_forced_alpha() else None
        if gc.get_linewidth() > 0 and gc.get_rgb()[3] > 0:
            name = NAMES.get(to_hex(gc.get_rgb()))
            if name is None:
                style += f"stroke:{to_hex(gc.get_rgb())};"
            else:
                classes.append(name)
            look += f' stroke-width="{gc.get_linewidth():.3g}"'
            _, dashes = gc.get_dashes()
            if dashes is not None:
                look += f' stroke-dasharray="{" ".join(_short(dash) for dash in dashes)}"'
            alpha = gc.get_rgb()[3] if alpha is None else alpha
        if face is not None and (len(face) == 3 or face[3] > 0):
            name = NAMES.get(to_hex(face[:3]))
            if name is None:
                style += f"fill:{to_hex(face[:3])};"
            else:
                classes.append(f"f-{name}")
            alpha = face[3] if len(face) == 4 and alpha is None else alpha
        if alpha is not None and alpha < 1:
            look += f' opacity="{alpha:.2g}"'
        if classes:
            look = f' class="{" ".join(classes)}"' + look
        if style:
            look += f' style="{style.rstrip(";")}"'
        if look:
            self._shapes.append((look, commands))


def _bold(prop: FontProperties) -> bool:
    return prop.get_weight() == "bold"
