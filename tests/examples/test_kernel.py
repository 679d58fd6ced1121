"""The NumPy kernel does what the Mandelbrot iteration is, pixel for pixel, in 32-bit floats."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel import ESCAPE, GROUP, SHADER, Tile, render, render_in_numpy
from view import View

coordinate = st.floats(-2.5, 2.5, width=32)
axis = st.lists(coordinate, min_size=1, max_size=6).map(lambda values: np.array(values, np.float32))


def iterate(real: np.float32, imaginary: np.float32, limit: int) -> tuple[int, np.float32]:
    """The definition, one pixel at a time."""
    x = y = xx = yy = np.float32(0)
    for count in range(1, limit + 1):
        xy = x * y
        x = xx - yy + real
        y = xy + xy + imaginary
        xx, yy = x * x, y * y
        if xx + yy > ESCAPE:
            return count, xx + yy
    return limit, xx + yy


@settings(max_examples=60)
@given(columns=axis, rows=axis, limit=st.integers(1, 40))
def test_every_pixel_is_what_the_definition_says(columns, rows, limit):
    """Parking and dropping escaped pixels changes no count and no norm, to the last bit."""
    counts, norms = render_in_numpy(Tile(0, columns, rows, limit))
    expected = [[iterate(real, imaginary, limit) for real in columns] for imaginary in rows]
    assert counts.tolist() == [[count for count, _ in row] for row in expected]
    assert norms.tolist() == [[float(norm) for _, norm in row] for row in expected]


def test_work_is_the_iterations_performed():
    """A pixel of the set costs the limit, one far outside costs one iteration."""
    tile = Tile(3, np.array([0.0, 20.0], np.float32), np.zeros(1, np.float32), 50)
    rendering = render(tile)
    assert rendering.tile == 3
    assert rendering.counts.tolist() == [[50, 1]]
    assert rendering.iterations == 51


def test_shader_and_caller_agree_on_the_constants():
    """The shader repeats two numbers that WGSL cannot import."""
    assert f"workgroup_size({GROUP})" in SHADER
    assert f"<= {ESCAPE}" in SHADER


def test_neighbours_compute_the_same_bits():
    """Both sides of a seam start from the same coordinates, so NumPy agrees with itself fully."""
    view = View.in_tiles(60, 40, 6, 200)
    tiles = view.tiles()
    for first, second, how in view.neighbours():
        axes = ("columns", "rows") if how == "beside" else ("rows", "columns")
        along, across = (getattr(tiles[first], name) for name in axes)
        assert np.array_equal(along[-2:], getattr(tiles[second], axes[0])[:2])
        assert np.array_equal(across, getattr(tiles[second], axes[1]))


@pytest.mark.parametrize("limit", [1, 2])
def test_the_first_iterations_count(limit):
    """A pixel that escapes at the limit itself is not taken for one of the set's by its norm."""
    tile = Tile(0, np.array([30.0], np.float32), np.zeros(1, np.float32), limit)
    counts, norms = render_in_numpy(tile)
    assert counts.tolist() == [[1]]
    assert norms[0, 0] > ESCAPE
