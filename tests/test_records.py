"""How records print and are displayed: a row a record."""

import re
from html import unescape

import pytest
import torch
from fuzz.calls_measures import (
    address,
    calibration,
    contribution,
    estimate,
    found,
    gain,
    latent,
    ranked,
    rate,
    reliability,
    site,
    surprise,
)

from pyro_memory import Card, Consolidation, FitResult, diagnostics, pretrained
from pyro_memory.cards import Cards
from pyro_memory.diagnostics import (
    BoundEstimate,
    ClassAgreement,
    FrechetDistance,
    MemoryContribution,
    Record,
    SampleDiversity,
)
from pyro_memory.diagnostics.tables import table
from pyro_memory.recall import Reorganisation


def consolidation(considered=2):
    chosen = torch.arange(3) < considered
    rows = torch.rand(considered)
    outcomes, ages = torch.rand(3, 4), torch.arange(3)
    widths = torch.rand(2), torch.rand(2), torch.rand(2)
    went = torch.where(chosen, 1, -1)
    return Consolidation(chosen, chosen, outcomes, outcomes, torch.rand(3), ages, went, rows, rows, 1, 0, *widths)


def fit_result():
    history = {
        "step": [10], "bound": [-123.4], "data": [4], "information": [{"step": 10, "a": 1.25}],
        "evaluation": [{"step": 10, "score": 2.5}],
    }  # fmt: skip
    return FitResult(10, 1.5, 1.4, history, None, {"a": "datum"})


RECORDS = {
    "AddressInformation": address,
    "BoundEstimate": estimate,
    "Calibration": calibration,
    "Card": lambda: next(iter(pretrained().values())),
    "Cards": pretrained,
    "ClassAgreement": lambda: ClassAgreement(0.5, 0.1, 0.9, 0.1, 0.2),
    "Consolidation": consolidation,
    "FitResult": fit_result,
    "FrechetDistance": lambda: FrechetDistance(1.0, 0.1, (4, 5)),
    "InformationGain": gain,
    "LatentInformation": latent,
    "MemoryContribution": contribution,
    "PosteriorAddress": found,
    "RateDistortion": rate,
    "Reliability": reliability,
    "Reorganisation": lambda: Reorganisation([(0, 1, 4.0)], [(2, 3, 5.5)]),
    "SampleDiversity": lambda: SampleDiversity(1.0, 0.1, 1.2, 0.1, 0.01, 0.0),
    "SiteCalibration": ranked,
    "SiteInformation": site,
    "TokenSurprise": surprise,
}


def words(html):
    return unescape(re.sub("<[^>]*>", " ", html)).split()


def kinds(base=Record):
    return {k.__name__ for k in base.__subclasses__() if k.__module__.startswith("pyro_memory")}


def test_every_record_has_a_row():
    """The gate and the checks of types leave one class each: a dataclass is not made twice."""
    assert kinds() == set(RECORDS)


@pytest.mark.parametrize("name", RECORDS)
def test_text_and_table_say_the_same(name):
    record = RECORDS[name]()
    assert words(record._repr_html_()) == repr(record).split()


@pytest.mark.parametrize("name", RECORDS)
def test_rows_are_whole(name):
    _, rows, notes = RECORDS[name]()._shown()
    assert len({len(row) for row in rows}) <= 1
    assert all(isinstance(text, str) for text in [*notes, *(cell for row in rows for cell in row)])


def test_a_table_has_its_columns_names_and_a_cell_a_number():
    record = BoundEstimate(torch.tensor([-2.0, -4.0]), torch.full((2,), 9.0), 10)
    html = record._repr_html_()
    assert re.findall("<th[^>]*>([^<]*)</th>", html) == ["", "nats/datum", "se"]
    assert re.findall("<td[^>]*>([^<]*)</td>", html)[:3] == ["log p(x) &gt;=", "-3.000", "1.000"]


def test_what_is_said_of_a_name_has_no_head():
    html = fit_result()._repr_html_()
    assert "<th" not in html
    assert re.findall("<td[^>]*>([^<]*)</td>", html)[-2:] == ["checkpoint", "none kept"]


def test_names_are_escaped():
    html = MemoryContribution(estimate(), {"<script>&": estimate()})._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;&amp;" in html
    noted = diagnostics.InformationGain({"a": site()}, site(), {}, 2, ("x < y",))
    assert "x &lt; y" in noted._repr_html_()


def test_columns_of_numbers_stand_right_and_what_is_said_left():
    assert table([("", "nats"), ("a", "long text")]) == "     nats\n  a  long text"
    assert table([("", "n", "se"), ("a", "100", "1")]) == "       n  se\n  a  100   1"


def test_a_folder_without_weights_prints_an_empty_overview(tmp_path):
    assert repr(pretrained(tmp_path)) == (
        "0 pairs with trained weights; each one's card tells more\n  name  model  data  measured"
    )


def test_an_overview_is_a_mapping_of_cards_with_their_first_number():
    facts = dict.fromkeys(("about", "licence", "protocol", "training", "commit"), "x")
    facts |= {"data": "omniglot, background", "numbers": {"bound": "-1.0 (0.1)", "other": 2}}
    build = {"model": ["Addressed", {"base": {"build": ["VAEBase", {"shape": [1, 2, 2]}]}}], "guide": ["G", {}]}
    cards = Cards({"small": Card("small", facts, build, "0")})
    assert cards == {"small": cards["small"]}
    assert cards._shown()[1][1] == ("small", "Addressed(VAEBase)", "omniglot", "bound -1.0 (0.1) and 1 more")
