"""The script of the pages' icons holds those that are named, and no others."""

import pytest

from tools.icons import SCRIPT, trim

ENTRIES = (
    'var a={"monero":[496,512,[],"f3d0","M1 2"],sun:[512,512,[9728],"f185","M3z"]},'
    'b={"magnifying-glass":[512,512,[128269,"search"],"f002","M4"],"two-tone":[512,512,[],"f1",["M5","M6"]]};'
)


@pytest.fixture
def site(tmp_path):
    (tmp_path / SCRIPT).parent.mkdir(parents=True)
    (tmp_path / SCRIPT).write_text(ENTRIES)
    return tmp_path


def test_icons_that_a_page_or_a_script_names_stay_under_all_their_names(site):
    (site / "page.html").write_text('<i class="fa-solid fa-search fa-lg"></i>')
    (site / "theme.js").write_text('button.innerHTML = "<i class=fa-sun>"')
    assert trim(site) == {"magnifying-glass", "sun"}
    assert (site / SCRIPT).read_text() == (
        'var a={sun:[512,512,[9728],"f185","M3z"]},b={"magnifying-glass":[512,512,[128269,"search"],"f002","M4"],};'
    )


def test_a_script_of_another_format_is_refused(site):
    (site / "page.html").write_text('<i class="fa-sun"></i>')
    (site / SCRIPT).write_text("var icons=new Map()")
    with pytest.raises(ValueError, match="its format has changed"):
        trim(site)
    assert (site / SCRIPT).read_text() == "var icons=new Map()"
