"""A view is cut into tiles without a gap, put together again, and compared along its seams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel import GROUP, Rendering, render_in_numpy
from view import WIDTH, Agreement, Canvas, View

views = st.builds(
    View.in_tiles, st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.just(9)
)


def drawn(view: View) -> Canvas:
    """All tiles of a view, by NumPy."""
    renderings = {}
    for tile in view.tiles():
        counts, norms = render_in_numpy(tile)
        renderings[tile.index] = Rendering(tile.index, counts, norms, int(counts.sum()))
    return Canvas(view, renderings)


@given(views)
def test_tiles_cover_the_view_exactly_once(view):
    """The widths of a row of tiles add up to the picture, frames not counted."""
    tiles = view.tiles()
    assert [tile.index for tile in tiles] == list(range(view.columns * view.rows))
    assert sum(tile.columns.size - 2 for tile in tiles[: view.columns]) == view.width
    assert sum(tile.rows.size - 2 for tile in tiles[:: view.columns]) == view.height
    assert all(tile.columns.size > 2 and tile.rows.size > 2 for tile in tiles)


@given(st.integers(50, 400), st.integers(50, 400), st.integers(1, 300))
def test_there_are_at_least_as_many_tiles_as_asked_for(width, height, tiles):
    """The largest square edge that gives enough tiles is taken."""
    view = View.in_tiles(width, height, tiles, 9)
    assert view.columns * view.rows >= tiles


def test_one_tile_is_never_too_large_for_a_dispatch():
    """Even where one tile is asked for, it has at most 65,535 workgroups of 64 pixels."""
    view = View.in_tiles(8000, 5000, 1, 9)
    tile = view.tiles()[0]
    assert tile.columns.size * tile.rows.size <= 65_535 * GROUP


def test_the_view_is_wide_enough_and_drawn_in_32_bit_floats():
    """At least 1e-3 wide, and neighbouring coordinates of the default picture differ."""
    assert WIDTH >= 1e-3
    view = View.in_tiles(3072, 2048, 864, 5000)
    first_row = np.concatenate([tile.columns[1:-1] for tile in view.tiles()[: view.columns]])
    assert first_row.dtype == np.float32
    assert np.all(np.diff(first_row) > 0)


def test_the_assembled_picture_is_that_of_one_tile():
    """Cutting changes nothing: many tiles give the picture that a single one gives."""
    whole, cut = View(31, 23, 31, 60), View(31, 23, 7, 60)
    for one, other in zip(drawn(whole).assemble(), drawn(cut).assemble(), strict=True):
        assert np.array_equal(one, other)


def test_only_seams_between_different_devices_are_compared():
    """Three tiles in a row on devices a, a, b share one seam, two pixels wide, frame included."""
    canvas = drawn(View(12, 4, 4, 30))
    assert canvas.agreement({0: "a", 1: "a", 2: "b"}) == Agreement(compared=12, equal=12)
    assert canvas.agreement({0: "a", 1: "a", 2: "a"}).ratio is None


@pytest.mark.parametrize("how", ["beside", "below"])
def test_a_differing_pixel_on_a_seam_is_found(how):
    """One wrong count in the strip of one tile lowers the agreement by one pixel."""
    view = View(8, 4, 4, 30) if how == "beside" else View(4, 8, 4, 30)
    canvas = drawn(view)
    canvas.renderings[1].counts[0, 0] += 1
    assert canvas.agreement({0: "a", 1: "b"}) == Agreement(compared=12, equal=11)
