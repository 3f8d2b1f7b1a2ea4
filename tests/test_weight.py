"""Pages load the icons that are named, and drawings that look as they were drawn."""

import pytest

from tools.weight import SCRIPT, round_off, trim_icons

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
    assert trim_icons(site) == {"magnifying-glass", "sun"}
    assert (site / SCRIPT).read_text() == (
        'var a={sun:[512,512,[9728],"f185","M3z"]},b={"magnifying-glass":[512,512,[128269,"search"],"f002","M4"],};'
    )


def test_a_script_of_another_format_is_refused(site):
    (site / "page.html").write_text('<i class="fa-sun"></i>')
    (site / SCRIPT).write_text("var icons=new Map()")
    with pytest.raises(ValueError, match="its format has changed"):
        trim_icons(site)
    assert (site / SCRIPT).read_text() == "var icons=new Map()"


def test_a_drawing_keeps_its_places_to_a_hundredth_and_its_scales_as_they_are():
    drawn = """<svg>
 <!-- T -->
 <g transform="translate(7.123456 8) scale(0.015625)">
  <path d="M 1.234567 -2.5
L 3.999999 4
z
" style="opacity: 0.123456"/>
  <use x="10.005001" y="-0.001"/>
  <text>1.23456</text>
 </g>
</svg>"""
    assert round_off(drawn) == (
        '<svg><g transform="translate(7.123456 8) scale(0.015625)"><path d="M1.23 -2.5L4 4z" style="opacity: 0.123456"/>'
        '<use x="10.01" y="-0"/><text>1.23456</text></g></svg>'
    )
    assert round_off(round_off(drawn)) == round_off(drawn)
