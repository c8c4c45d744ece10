"""Draw the bowel wall of a phantom: a height field with a coloured skin, lit from the camera."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Field = NDArray[np.float32]
"""(H, W) float32 over the image's pixels; colours are (3, H, W)."""


@dataclass(frozen=True)
class Look:
    """One hospital's appearance.

    tint: factor for red, green and blue.
    brightness, contrast: exposure, and the exponent on the shading.
    texture: factor on the amplitude of skin texture; grain: on its size.
    frame: shape of the visible field.
    """

    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    brightness: float = 1.0
    contrast: float = 1.0
    texture: float = 1.0
    grain: float = 1.0
    frame: str = "octagon"


class Wall:
    """A wall under construction: its relief, the colour of its skin, and the mask of its lesions.

    Lengths are in units of the shorter side; the origin is the centre of the image.
    """

    def __init__(self, rng: np.random.Generator, height: int, width: int, look: Look) -> None:
        self.rng, self.look = rng, look
        self.px = min(height, width)
        y, x = np.indices((height, width), dtype=np.float32)
        self.x = (x - width / 2) / self.px
        self.y = (y - height / 2) / self.px
        self.frame = self._visible()
        self.truth = np.zeros((height, width), bool)

        # The bowel runs from the camera towards the lumen; in close-ups the lumen is out of sight.
        away = rng.uniform(0, 2 * math.pi)
        far = rng.uniform(0.05, 0.42) if rng.random() < 0.7 else rng.uniform(0.6, 0.9)
        self.lumen = (far * math.cos(away), far * math.sin(away))
        self.lumen_radius = float(rng.uniform(0.07, 0.17))
        bend = 0.20 * self.noise(0.5) + 0.09 * self.noise(0.2)
        x_off, y_off = self.x - self.lumen[0], self.y - self.lumen[1]
        stretch = rng.uniform(0.75, 1.3)
        self.away = np.hypot(x_off * stretch, y_off / stretch) * (1 + bend)
        self.angle = np.arctan2(y_off, x_off)

        skin = np.array([0.80, 0.40, 0.30]) * (1 + rng.normal(0, [0.03, 0.06, 0.07]))
        self.relief = 0.040 * self.noise(0.5) + 0.010 * self.noise(0.14)
        self.relief += 0.0010 * look.texture * self.noise(0.022)
        self.dim = np.ones((height, width), np.float32)
        self.colour = np.ones((3, height, width), np.float32) * rgb(*skin)
        grain = look.grain * rng.uniform(0.8, 1.25)
        texture = (
            look.texture
            * rng.uniform(0.05, 0.10)
            * (
                0.5 * self.noise(0.10 * grain)
                + 0.5 * self.noise(0.035 * grain)
                + 0.5 * self.noise(0.012 * grain)
            )
        )
        tone = self.noise(0.35)
        blotch = self.noise(0.08 * grain)
        self.colour *= np.exp(texture)
        self.colour[1] *= np.exp(0.09 * tone + 0.05 * blotch)
        self.colour[2] *= np.exp(0.11 * tone + 0.06 * blotch)

    def noise(self, size: float, shape: tuple[int, int] | None = None) -> Field:
        """Smooth noise of about unit variance with features of `size`, over the image or `shape`."""
        height, width = shape or self.x.shape
        cell = max(1.5, size * self.px)
        grid = self.rng.standard_normal((int(height / cell) + 4, int(width / cell) + 4))
        # The box starts at a random place in a cell, or all phantoms would share one grid.
        left, top = self.rng.uniform(0.5, 1.5, size=2)
        smooth = Image.fromarray(grid.astype(np.float32)).resize(
            (width, height),
            Image.Resampling.BICUBIC,
            box=(left, top, left + width / cell, top + height / cell),
        )
        return np.asarray(smooth) * np.float32(1.25)

    def add_folds(self) -> None:
        """Haustral folds: ridges around the lumen, each a part of a ring, steep behind the crest."""
        # The logarithm spaces folds evenly along the bowel in perspective.
        along = np.log(self.away + 0.10)
        wave = along * self.rng.uniform(1.2, 2.2) + 0.15 * self.noise(0.40)
        phase = (wave + self.rng.random()) % 1.0
        crest = np.where(phase < 0.80, (phase / 0.80) ** 3, (1 - phase) / 0.20)
        present = _step(self.noise(0.45) + self.rng.uniform(-0.5, 0.5), -0.3, 0.9)
        present *= _step(self.away, 0.8 * self.lumen_radius, 1.6 * self.lumen_radius)
        fold = ndimage.gaussian_filter(crest * present, 0.010 * self.px, truncate=2.5)
        self.relief += self.rng.uniform(0.06, 0.13) * fold
        behind = np.where(phase > 0.82, (phase - 0.82) / 0.18, np.exp(-phase / 0.22)) * present
        behind = ndimage.gaussian_filter(behind, 0.012 * self.px, truncate=2.5)
        self.dim *= 1 - self.rng.uniform(0.15, 0.45) * behind

    def add_vessels(self) -> None:
        """A net of thin dark red lines: the zero lines of warped noise."""
        if self.rng.random() < 0.3:
            return
        amount = self.rng.uniform(0.1, 0.45) * _step(self.noise(0.4), -0.6, 0.9)
        for size, width in ((0.22, 0.05), (0.12, 0.07)):
            line = np.exp(-(((self.noise(size) + 0.25 * self.noise(size / 3)) / width) ** 2))
            self.colour *= 1 - amount * line * rgb(0.3, 0.8, 0.7)

    def add_flush(self) -> None:
        """Flat patches coloured like a lesion, so that colour alone does not find lesions."""
        for _ in range(int(self.rng.integers(0, 4))):
            at, distance = self._blob(self._place(0.0), self.rng.uniform(0.05, 0.16), 0.25)
            patch = _step(distance, 1.25, 0.6)
            self.colour[:, *at] *= 1 + patch * self._lesion_tint()

    def add_knobs(self) -> None:
        """Bulges of ordinary skin, so that relief alone does not find lesions."""
        for _ in range(int(self.rng.integers(0, 4))):
            radius = self.rng.uniform(0.06, 0.15)
            at, distance = self._blob(self._place(0.0), radius, 0.15)
            self.relief[at] += radius * self.rng.uniform(0.15, 0.5) * np.exp(-2.2 * distance**2)

    def add_lesion(self) -> None:
        """A dome with an irregular outline, another skin and a shaded foot."""
        radius = float(np.exp(self.rng.uniform(np.log(0.07), np.log(0.23))))
        at, distance = self._blob(self._place(radius), radius, 0.10)
        inside = (distance < 1) & ~self.truth[at]
        soft = self.rng.uniform(1.0, 2.6)
        body = ndimage.gaussian_filter(inside.astype(np.float32), soft, truncate=2.5)

        # From flat to bulging; some have a lobed surface.
        dome = np.clip(1.0 - distance**2, 0, None) ** self.rng.uniform(0.5, 0.9) * body
        dome = ndimage.gaussian_filter(dome, soft + 0.05 * radius * self.px, truncate=2.5)
        rise = radius * self.rng.uniform(0.30, 0.95)
        lobes = self.rng.uniform(0, 0.22) * self.noise(0.5 * radius, distance.shape)
        self.relief[at] += rise * dome * (1 + lobes)

        # Fewer vessels on it, another grain, slightly another colour.
        grain = 0.6 * self.noise(0.03, distance.shape) + 0.8 * self.noise(0.014, distance.shape)
        around = self.colour[:, *at][:, (distance > 1) & (distance < 1.5) & self.frame[at]]
        skin = around.mean(axis=1) if around.size else self.colour.mean(axis=(1, 2))
        grain = np.exp(self.look.texture * 0.09 * grain)
        cover = self.rng.uniform(0.6, 0.95) * body
        self.colour[:, *at] *= 1 - cover
        self.colour[:, *at] += rgb(*skin) * (1 + 1.3 * self._lesion_tint()) * (grain * cover)

        # The foot is in shade, mostly on the side that faces away from the light.
        shade = np.exp(-(((distance - 1.08) / 0.16) ** 2)) * self.rng.uniform(0.1, 0.45)
        side = 0.5 + 0.5 * np.sin(self.angle[at] + self.rng.uniform(0, 2 * math.pi))
        self.dim[at] *= 1 - shade * side * (1 - 0.6 * body)
        self.truth[at] |= inside

    def add_residue(self) -> None:
        """Yellow residue and bubbles lying on the wall."""
        for _ in range(int(self.rng.choice([0, 0, 0, 1, 2]))):
            at, distance = self._blob(self._place(0.0), self.rng.uniform(0.015, 0.06), 0.09)
            ragged = distance + 0.25 * self.noise(0.02, distance.shape)
            body = 0.85 * _step(ragged, 1.1, 0.7) * ~self.truth[at]
            grain = np.exp(0.12 * self.noise(0.02, distance.shape))
            self.colour[:, *at] *= 1 - body
            self.colour[:, *at] += rgb(0.74, 0.52, 0.16) * (grain * body)
            self.relief[at] += 0.02 * np.clip(1 - ragged, 0, None)
        if self.rng.random() < 0.35:
            x, y = self._place(0.0)
            for _ in range(int(self.rng.integers(2, 12))):
                self._add_bubble(x + self.rng.normal(0, 0.09), y + self.rng.normal(0, 0.09))

    def _add_bubble(self, x: float, y: float) -> None:
        radius = self.rng.uniform(0.008, 0.03)
        at = self._window((x, y), 1.6 * radius)
        distance = np.hypot(self.x[at] - x, self.y[at] - y) / radius
        gleam = np.hypot(self.x[at] - x + 0.4 * radius, self.y[at] - y + 0.4 * radius) / radius
        self.dim[at] *= 1 - 0.3 * np.exp(-(((distance - 0.9) / 0.16) ** 2))
        self.colour[:, *at] += 0.8 * np.exp(-((gleam / 0.25) ** 2))

    def render(self) -> Field:
        """Light the wall from beside the camera: (3, H, W), about 0 to 1, with brighter highlights."""
        side = self.rng.uniform(-0.4, 0.4, size=2).astype(np.float32)
        slope_y, slope_x = np.gradient(self.relief * self.px)
        # The wall itself leans towards the camera at its near end.
        lean = 0.35 * _step(self.away, 0.9, 0.1)
        slope_x = slope_x + lean * np.cos(self.angle)
        slope_y = slope_y + lean * np.sin(self.angle)
        facing = (1 - slope_x * side[0] - slope_y * side[1]) / np.sqrt(
            (1 + slope_x**2 + slope_y**2) * (1 + side @ side)
        )
        near = _step(self.away, 0.3 * self.lumen_radius, self.lumen_radius + 0.45)
        glow = 1.15 - 0.9 * ((self.x - 0.4 * side[0]) ** 2 + (self.y - 0.4 * side[1]) ** 2)
        light = (0.10 + 0.90 * near) * np.clip(glow, 0.3, None) * self.dim
        light *= np.clip(0.30 + 0.72 * facing, 0.1, None) ** (2.0 * self.look.contrast)

        # Wet highlights: where a rippled surface mirrors the lamp, in clusters.
        mirror = (slope_x + 0.22 * self.noise(0.035) - side[0]) ** 2
        mirror += (slope_y + 0.22 * self.noise(0.025) - side[1]) ** 2
        wet = _step(self.noise(0.14), 0.5, 1.5) * near
        gloss = np.exp(-mirror / 0.006) * wet * self.rng.uniform(0.5, 4.0)
        # Far skin turns browner: light that went further through wet tissue.
        lit: Field = self.colour * (1.15 * light)
        lit *= 1 - rgb(0.0, 0.14, 0.22) * (1 - near)
        lit += gloss
        return lit

    def _visible(self) -> NDArray[np.bool_]:
        """What the endoscope's frame leaves to see."""
        height, width = self.x.shape
        half_x, half_y = width / self.px / 2, height / self.px / 2
        if self.look.frame == "full":
            reach = np.zeros_like(self.x)
        elif self.look.frame == "circle":
            reach = np.hypot(self.x / half_x, self.y / half_y) - 1.12
        else:
            reach = np.abs(self.x) + np.abs(self.y) - (half_x + half_y - 0.22)
        return np.asarray(reach <= 0)

    def _place(self, radius: float) -> tuple[float, float]:
        """A spot on the wall in sight, if one is found; with a radius, clear of other things."""
        half_x, half_y = float(self.x.max()), float(self.y.max())
        spot = (0.0, 0.0)
        for _ in range(60):
            spot = (
                float(self.rng.uniform(-half_x, half_x) * 0.8),
                float(self.rng.uniform(-half_y, half_y) * 0.8),
            )
            at = self._window(spot, 1.2 * radius)
            row, column = (int((spot[k] + (half_y, half_x)[1 - k]) * self.px) for k in (1, 0))
            on_wall = self.away[row, column] > self.lumen_radius + 0.5 * radius
            if self.frame[at].mean() > 0.9 and on_wall and not self.truth[at].any():
                break
        return spot

    def _window(self, spot: tuple[float, float], reach: float) -> tuple[slice, slice]:
        """The part of the image within `reach` of `spot`, at least one pixel."""
        x, y = spot[0] - float(self.x[0, 0]), spot[1] - float(self.y[0, 0])
        height, width = self.x.shape
        return (
            slice(*_span(y - reach, y + reach, self.px, height)),
            slice(*_span(x - reach, x + reach, self.px, width)),
        )

    def _blob(
        self, spot: tuple[float, float], radius: float, rough: float
    ) -> tuple[tuple[slice, slice], Field]:
        """A window around an irregular outline, and the distance in it, which is 1 on the outline."""
        at = self._window(spot, 2.4 * radius)
        turn = self.rng.uniform(0, 2 * math.pi)
        longer = self.rng.uniform(1.0, 1.25)
        x, y = self.x[at] - spot[0], self.y[at] - spot[1]
        along = (x * math.cos(turn) + y * math.sin(turn)) / longer
        across = (y * math.cos(turn) - x * math.sin(turn)) * longer
        # The outline's radius as a Fourier series of the angle, tabulated: cosines are slow.
        angle = np.linspace(-np.pi, np.pi, 721, dtype=np.float32)
        outline = np.ones_like(angle)
        for k in range(2, 8):
            wobble = rough * float(self.rng.normal()) * (2 / k) ** 1.3
            outline += wobble * np.cos(k * angle + self.rng.uniform(0, 2 * math.pi))
        place = np.rint(np.arctan2(across, along) * (360 / math.pi)).astype(np.int16) + 360
        return at, np.hypot(along, across) / (radius * np.clip(outline, 0.5, 1.6))[place]

    def _lesion_tint(self) -> Field:
        """Slightly redder or paler than the skin around; the same for lesions and flat patches."""
        strength = self.rng.uniform(0.5, 1.5)
        if self.rng.random() < 0.65:
            return rgb(0.02, -0.14, -0.11) * strength
        return rgb(0.04, 0.08, 0.10) * strength


def rgb(red: float, green: float, blue: float) -> Field:
    """A colour that multiplies with (3, H, W)."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def _span(low: float, high: float, px: int, end: int) -> tuple[int, int]:
    """Pixels from `low` to `high`, cut to the image; never empty."""
    first = min(max(0, int(low * px)), end - 1)
    return first, min(max(first + 1, int(high * px) + 1), end)


def _step(value: Field, low: float, high: float) -> Field:
    """Smooth step from 0 at `low` to 1 at `high`, which may be the smaller."""
    t = np.clip((value - low) / (high - low), 0, 1).astype(np.float32)
    smooth: Field = t * t * (3 - 2 * t)
    return smooth
