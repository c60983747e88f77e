"""What is no record prints in one line: a row a kind."""

import pytest
import torch
from fuzz.calls_data import drawing, needles, recalled, series, text, windows
from fuzz.parts import concepts, episodes, letters, slots, structured, vma, vma_guide

from pyro_memory import VIMCO, LeaveOneOutELBO, RaoBlackwellELBO, SlotIndex
from pyro_memory.data import ClassStream, FewShotTasks, NeedleTasks, RecallTasks, SetTasks, TextBatches
from pyro_memory.models import LSTMMixer, SequenceModel, TitansLMM, TitansMAC, TitansMAG, TransformerMixer
from pyro_memory.naming import call_of
from pyro_memory.training import load_checkpoint, read_header, save_checkpoint

X = torch.randn(2, 5, 4)


def state(mixer):
    return mixer(X)[1]


def few_shot(**options):
    return FewShotTasks(**drawing() | {"classes": 2, "shots": 1, "targets": 2} | options)


REPRS = {
    "CharacterText": (text, "CharacterText("),
    "ClassStream": (lambda: ClassStream(letters(), stages=2), "ClassStream(2 stages"),
    "ConceptMemory": (concepts, "ConceptMemory("),
    "ContextState": (lambda: state(TitansMAC(4, heads=1, segment=16)), "ContextState(2 sequences, "),
    "EpisodicMemory": (episodes, "EpisodicMemory("),
    "FewShotTasks": (few_shot, "FewShotTasks(data=LabelledImages("),
    "FewShotTasks of fixed targets": (
        lambda: few_shot(
            target_indices=torch.arange(4), turned=0.0, varied=0.0, seed=3, per_target=True, protocol="gmn"
        ),
        "FewShotTasks(data=LabelledImages(",
    ),
    "HybridState": (lambda: state(TitansMAG(4, heads=1, window=2)), "HybridState(2 sequences, "),
    "LSTMState": (lambda: state(LSTMMixer(4, hidden=3)), "LSTMState(2 sequences, 2 tensors, 12 numbers)"),
    "LabelledImages": (letters, "LabelledImages("),
    "LeaveOneOutELBO": (lambda: LeaveOneOutELBO(), "LeaveOneOutELBO(num_particles=2)"),
    "MemoryState": (lambda: state(TitansLMM(4, heads=1)), "MemoryState(2 sequences, "),
    "NeedleTasks": (lambda: NeedleTasks(**needles()), "NeedleTasks(text=CharacterText("),
    "RaoBlackwellELBO": (lambda: RaoBlackwellELBO(3, site="k"), "RaoBlackwellELBO(likeliest=3, site='k')"),
    "RecallTasks": (lambda: RecallTasks(**recalled()), "RecallTasks(pairs="),
    "SequenceState": (
        lambda: SequenceModel.tokens(5, LSTMMixer, dim=4, blocks=2).read(torch.zeros(1, 3).long())[1],
        "SequenceState(2 blocks, each with LSTMState)",
    ),
    "Series": (series, "Series("),
    "SeriesWindows": (lambda: series().windows(**windows()), "SeriesWindows(series=a Series, "),
    "SetTasks": (lambda: SetTasks(letters(), tasks=2, shots=(1, 2)), "SetTasks(data=LabelledImages("),
    "SlotIndex": (lambda: SlotIndex("brute"), "SlotIndex(brute, empty"),
    "SlotMemory": (slots, "SlotMemory(shared, slots=5"),
    "StructuredMemory": (structured, "StructuredMemory("),
    "TextBatches": (
        lambda: TextBatches(torch.arange(9), length=3, batch=2),
        "TextBatches(tokens=an int64 tensor of shape [9], length=3, batch=2)",
    ),
    "VIMCO": (lambda: VIMCO(), "VIMCO(num_particles=4)"),
    "VIMCO of another baseline": (
        lambda: VIMCO(3, baseline="arithmetic", max_plate_nesting=2),
        "VIMCO(num_particles=3, baseline='arithmetic'",
    ),
    "WindowState": (lambda: state(TransformerMixer(4, heads=1, window=3)), "WindowState(2 sequences, "),
}


@pytest.mark.parametrize("name", REPRS)
def test_it_prints_in_one_short_line(name):
    make, begins = REPRS[name]
    line = repr(make())
    assert line.startswith(begins)
    assert "\n" not in line
    assert len(line) <= 120, len(line)
    assert "tensor([" not in line


def test_a_header_prints_in_one_line_and_is_a_dict(tmp_path):
    model, guide = vma(), vma_guide()
    optimizer = torch.optim.Adam(model.parameters())
    record = {"learning rates": list(range(1000)), "seed": 1}
    path = save_checkpoint(tmp_path / "run.safetensors", model, guide, optimizer, step=7, record=record)
    header = read_header(path)
    assert repr(header) == "Header of a checkpoint at step 7: VMA, VMAGuide, Adam; record of 2 entries"
    assert header["record"] == record
    assert repr(load_checkpoint(path, model, guide)) == repr(header)


def test_a_call_shows_its_first_argument_and_what_is_not_usual():
    class Thing:
        def __init__(self, size, *, rate=0.1, kind="a", data=None, hidden=3):
            self.size, self.rate, self.kind, self.data, self._hidden = size, rate, kind, data, hidden

    assert call_of(Thing(4)) == "Thing(size=4)"
    thing = Thing(4, kind="b", data=torch.zeros(2, 3), hidden=5)
    assert call_of(thing) == "Thing(size=4, kind='b', data=a float32 tensor of shape [2, 3])"
    assert call_of(Thing(torch.nn.Sequential(torch.nn.ReLU()))) == "Thing(size=a Sequential)"
