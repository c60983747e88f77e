"""What is done to files: damage at places spread over them, writers cut off, caches that cannot be used."""

import hashlib
import io
import itertools
import os
import sys
import zipfile
from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp

import numpy as np
import torch
from faults_cases import PLAIN, Case, listing, taken_up
from faults_children import Operations, become_nobody, child, children, limit_files, told
from faults_runs import CHECKPOINT, EVERY, RUNS, SHAPE, checksum, ink, train
from PIL import Image

from pyro_memory import ContentAddress, MappedMemory, load_pretrained, pretrained, save_pretrained
from pyro_memory.data import omniglot
from pyro_memory.guides import VMAGuide
from pyro_memory.models import VMA
from pyro_memory.training import load_checkpoint


def damages(content, random, quick):
    """Pairs of a name and the content, cut or with a byte flipped, at places spread over it, most at its start."""
    count, first = (4, 4) if quick else (64, 32)
    spread = {round(i * (len(content) - 1) / (count - 1)) for i in range(count)}
    places = sorted(spread | set(range(min(first, len(content)))))
    for at in places:
        bit = 1 << random.randrange(8)
        yield f"bit {bit} of byte {at} flipped", content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
        yield f"cut before byte {at}", content[:at]
        if not quick:
            yield f"16 bytes from {at} lost", content[:at] + content[at + 16 :]


def under_damage(path, read, about, quick, random):
    """Reads a file under each damage: what else came than the same as before, or a sentence with one of ``about``."""
    whole, lost = path.read_bytes(), []
    wanted = child(read).value
    for name, content in damages(whole, random, quick):
        path.write_bytes(content)
        end = child(read)
        if end.value != wanted and not told(end, *about):
            lost.append(f"{name}: {'other content, silently' if end.error is None else end.ended}")
        else:
            lost.append(None)
    path.write_bytes(whole)
    return lost


def a_damaged_checkpoint(quick, random):
    seed = random.random()

    def read(folder):
        model, guide, *_ = RUNS[PLAIN](folder)
        optimizer = torch.optim.Adam(torch.nn.ModuleList([model, guide]).parameters())
        header = load_checkpoint(folder / CHECKPOINT, model, guide, optimizer)
        moments = {f"{i} {k}": t for i, row in optimizer.state_dict()["state"].items() for k, t in row.items()}
        return checksum(model.state_dict(), guide.state_dict(), moments, torch.get_rng_state(), header)

    def trial(folder):
        child(lambda: train(PLAIN, folder))
        return under_damage(folder / CHECKPOINT, lambda: read(folder), [CHECKPOINT], quick, Random(seed))

    def summary(folder):
        """What is written for people is never read."""
        child(lambda: train(PLAIN, folder, steps=EVERY))
        (path,) = folder.glob("*.json")
        lost = []
        for content in (b"", b"{", None):
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
            lost.append(taken_up(PLAIN, folder))
            if content is not None:
                child(lambda: train(PLAIN, folder, steps=EVERY, resume=False))
        return lost

    yield Case("damaged checkpoint", "its bytes", trial)
    yield Case("damaged checkpoint", "the summary beside it", summary)


BUILD = {"latent_dim": 2, "hidden": [8, 8]}
FACTS = dict.fromkeys(("about", "data", "licence", "protocol", "numbers", "training", "commit"), "some words")


def save(folder, seed):
    """Saves a small pair, of other weights for another seed."""
    torch.manual_seed(seed)
    pair = VMA.mlp(SHAPE, **BUILD), VMAGuide.mlp(SHAPE, **BUILD, matching_dim=4)
    build = {"shape": list(SHAPE)} | BUILD
    build = {"model": ["VMA.mlp", build], "guide": ["VMAGuide.mlp", build | {"matching_dim": 4}]}
    save_pretrained("tiny", *pair, build=build, facts=FACTS, folder=folder)
    return loaded(folder)


def loaded(folder):
    pair = load_pretrained("tiny", folder)
    return checksum(*(m.state_dict() for m in pair)), repr(pretrained(folder)["tiny"])


def damaged_weights(quick, random):
    seed = random.random()
    for suffix in (".json", ".safetensors"):

        def trial(folder, suffix=suffix):
            child(lambda: save(folder, 0))
            return under_damage(folder / f"tiny{suffix}", lambda: loaded(folder), ["tiny"], quick, Random(seed))

        yield Case("damaged weights or card", suffix, trial)


def weights_cut_off(quick, random):
    @cache
    def usual():
        folder, operations = Path(mkdtemp()), Operations()
        old = child(lambda: save(folder, 0)).value
        seen = child(lambda: (operations.start(), save(folder, 1), operations.stop(), operations.names)).value
        return old, seen[1], listing(folder), seen[3]

    names = usual()[3]
    for at in random.sample(range(len(names)), 3) if quick else range(len(names)):

        def trial(folder, at=at):
            old, new, files, _ = usual()
            child(lambda: save(folder, 0))
            child(lambda: (Operations(at).start(), save(folder, 1)))
            seen = child(lambda: loaded(folder))
            if seen.value not in (old, new):
                return [f"neither the old pair nor the new one loads: {seen.ended}"]
            if child(lambda: save(folder, 1)).value != new:
                return ["it cannot be saved again"]
            return [None if listing(folder) == files else f"left {set(listing(folder)) - set(files)}"]

        yield Case("save_pretrained killed", f"{at} {names[at]}", trial)


def state(folder):
    memory = MappedMemory.open(folder)
    return checksum(memory.values, *([] if memory.keys is None else [memory.keys]))


ADDRESS = 7  # the seed of the network whose keys are laid beside the slots


def with_keys(folder):
    torch.manual_seed(ADDRESS)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(63, 4))
    MappedMemory.open(folder).with_keys(ContentAddress(net))
    return state(folder)


def append(folder, seed, count=10):
    MappedMemory.open(folder).append(ink(count, *SHAPE, seed=seed))
    return state(folder)


def create(folder):
    MappedMemory.create(folder, SHAPE).append(ink(20, *SHAPE, seed=0))
    return state(folder)


def a_memory_in_files_cut_off(quick, random):
    works = {"append": lambda folder: append(folder, 1), "with_keys": with_keys}

    @cache
    def usual(name):
        folder, operations = Path(mkdtemp()), Operations()
        old = child(lambda: create(folder)).value
        seen = child(lambda: (operations.start(), works[name](folder), operations.stop(), operations.names)).value
        return old, seen[1], listing(folder), seen[3]

    def after(name, folder):
        """What is lost where a writer stopped: the state before or after it, and the next writer's work."""
        old, new, files, _ = usual(name)
        seen = child(lambda: state(folder))
        if seen.value not in (old, new):
            return f"neither the state before nor after: {seen.ended}"
        if seen.value == old or name == "with_keys":
            again = child(lambda: works[name](folder))
            if again.value != new:
                return f"doing it again: {again.ended}"
        else:
            child(lambda: append(folder, 2))  # the next write clears what this one left
        more = [f for f in listing(folder) if f not in files and not f.startswith("keys-")]
        keys = [f for f in listing(folder) if f.startswith("keys-")]
        return f"left {more + keys}" if more or len(keys) > 1 else None

    for name in works:
        names = usual(name)[3]
        for at in random.sample(range(len(names)), 3) if quick else range(len(names)):

            def trial(folder, name=name, at=at):
                child(lambda: create(folder))
                child(lambda: (Operations(at).start(), works[name](folder)))
                return [after(name, folder)]

            yield Case("a memory in files, killed", f"{name}, {at} {names[at]}", trial)

    for kill in (True, False):
        for size in (
            [1500] if quick else [0, 1, 100, 1259, 1260, 1261, *(random.randrange(1261, 1890) for _ in range(4))]
        ):

            def trial(folder, size=size, kill=kill):
                child(lambda: create(folder))
                end = child(lambda: (limit_files(size, kill=kill), append(folder, 1)))
                if not kill and not told(end, folder.name):
                    return [f"no sentence: {end.ended}"]
                return [after("append", folder)]

            kind = "a memory in files, killed" if kill else "disk full"
            yield Case(kind, f"append, at byte {size}", trial)


def a_damaged_memory(quick, random):
    seed = random.random()

    def trial(folder):
        child(lambda: create(folder / "slots"))
        path = folder / "slots" / "memory.json"
        return under_damage(path, lambda: state(folder / "slots"), ["slots", "memory.json"], quick, Random(seed))

    def cut(folder):
        child(lambda: (create(folder / "slots"), with_keys(folder / "slots")))
        lost = []
        for path in sorted((folder / "slots").glob("*.bin")):
            whole = path.read_bytes()
            for at in {round(i * (len(whole) - 1) / 31) for i in range(4 if quick else 32)}:
                path.write_bytes(whole[:at])
                end = child(lambda: state(folder / "slots"))
                lost.append(None if told(end, path.name) else f"{path.name} cut at {at}: {end.ended}")
            path.write_bytes(whole)
        return lost

    yield Case("damaged memory in files", "memory.json", trial)
    yield Case("damaged memory in files", "its slots and keys, cut", cut)


def appended_by_two(quick, random):
    for number in range(1 if quick else 12):

        def trial(folder):
            """Each item that a process was told is in memory is in memory, once, in order."""
            child(lambda: create(folder))

            def write(first):
                done = []
                for seed in range(first, first + 10):
                    try:
                        append(folder, seed)
                        done.append(seed)
                    except ValueError as error:  # another was first, or is writing
                        if "another process" not in str(error) and "newest state" not in str(error):
                            raise
                return done

            ends = children(lambda: write(100), lambda: write(200))
            broken = [end.ended for end in ends if end.error or end.signal or end.hung]
            if broken:
                return [f"a writer: {broken[0]}"]
            blocks = MappedMemory.open(folder).values[20:].reshape(-1, 10, *SHAPE)
            wanted = {seed: ink(10, *SHAPE, seed=seed).byte() for end in ends for seed in end.value}
            there = [seed for block in blocks for seed, items in wanted.items() if torch.equal(block, items)]
            if sorted(there) != sorted(wanted) or len(blocks) != len(wanted):
                return [f"{len(wanted)} blocks were taken, {len(set(there))} are there"]
            return [None]

        yield Case("two processes append to one memory", str(number), trial)


def drawings(folder):
    """A folder with a small archive like Omniglot's."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for a, c, d in itertools.product("AB", (1, 2), (1, 2, 3)):
            png = io.BytesIO()
            black = np.random.default_rng([ord(a), c, d]).random((105, 105)) < 0.1
            Image.fromarray(~black).save(png, "png")
            name = f"images_background/{a}/character{c:02d}/{d:04d}.png"
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), png.getvalue())
    folder.mkdir(exist_ok=True)
    (folder / "images_background.zip").write_bytes(stream.getvalue())
    return folder


def pictures(root, cached):
    os.environ["XDG_CACHE_HOME"] = str(cached)
    data = omniglot("background", root=root)
    return checksum(data.images, data.labels, {"names": list(data.class_names)})


def small_archive_for_omniglot(folder):
    """Has the small archive taken for the published one, whose content is known by its checksum."""
    home = sys.modules[omniglot.__module__]
    if not hasattr(home, "check_content"):
        return
    real, seen = home.check_content, []
    home.check_content = lambda path, content, *_: seen.append(hashlib.sha256(content).hexdigest())
    pictures(drawings(folder / "data"), folder / "cache")
    home.check_content, home.CONTENTS["background"] = real, seen[0]


def caches(quick, random):
    seed = random.random()

    @cache
    def usual():
        folder = Path(mkdtemp())
        end = child(lambda: pictures(drawings(folder / "data"), folder / "cache"))
        operations = Operations()
        seen = child(lambda: (operations.start(), pictures(folder / "data", folder / "c2"), operations.names)[-1])
        return end.value, listing(folder / "cache"), seen.value

    def same(end):
        return None if end.value == usual()[0] else f"the images: {end.ended}"

    def below_a_file(folder):
        (folder / "file").touch()
        return [same(child(lambda: pictures(drawings(folder / "data"), folder / "file")))]

    def read_only(folder):
        drawings(folder / "data")
        (folder / "cache").mkdir(mode=0o555)
        return [same(child(lambda: (become_nobody(folder), pictures(folder / "data", folder / "cache"))[-1]))]

    def full(folder):
        drawings(folder / "data")
        lost = []
        for size in (0, 10, 1000):
            place = folder / f"cache{size}"
            end = child(lambda: (limit_files(size, kill=False), pictures(folder / "data", place))[-1])  # noqa: B023
            lost += [same(end), f"left {listing(place)}" if any(".tmp" in f for f in listing(place)) else None]
        return lost

    def no_home(folder):
        drawings(folder / "data")
        (folder / "here").mkdir()

        def work():
            for name in ("HOME", "XDG_CACHE_HOME", "USERPROFILE"):
                os.environ.pop(name, None)
            os.chdir(folder / "here")
            become_nobody(folder / "here", user=54321)
            data = omniglot("background", root=folder / "data")
            return checksum(data.images, data.labels, {"names": list(data.class_names)})

        return [same(child(work)), f"left {listing(folder / 'here')}" if listing(folder / "here") else None]

    def damaged(folder):
        child(lambda: pictures(drawings(folder / "data"), folder / "cache"))
        (path,) = (p for p in (folder / "cache").rglob("*") if p.is_file())
        whole, lost = path.read_bytes(), []
        for name, content in damages(whole, Random(seed), quick):
            path.write_bytes(content)
            lost.append(same(child(lambda: pictures(folder / "data", folder / "cache"))))
            lost[-1] = lost[-1] and f"{name}: {lost[-1]}"
        more = set(listing(folder / "cache")) - set(usual()[1])
        return [*lost, f"left {more}" if more else None]

    def two(folder):
        drawings(folder / "data")
        lost = []
        for number in range(1 if quick else 10):
            place = folder / f"cache{number}"
            lost += map(same, children(*[lambda: pictures(folder / "data", place)] * 3))  # noqa: B023
            lost.append(None if listing(place) == usual()[1] else f"left {listing(place)}")
        return lost

    def killed(folder):
        drawings(folder / "data")
        names, lost = usual()[2], []
        for at in sorted(random.sample(range(len(names)), min(len(names), 3 if quick else 24))):
            place = folder / f"cache{at}"
            child(lambda: (Operations(at).start(), pictures(folder / "data", place)))  # noqa: B023
            lost.append(same(child(lambda: pictures(folder / "data", place))))  # noqa: B023
            more = set(listing(place)) - set(usual()[1])
            lost.append(f"{names[at]}: left {more}" if more else None)
        return lost

    for trial in (below_a_file, read_only, full, no_home, damaged, two, killed):
        yield Case("cache of decoded images", trial.__name__.replace("_", " "), trial)


def damaged_data(quick, random):
    seed = random.random()

    def trial(folder):
        path = drawings(folder / "data") / "images_background.zip"
        return under_damage(path, lambda: pictures(folder / "data", folder / "cache"), [path.name], quick, Random(seed))

    yield Case("damaged data", "a zip of drawings", trial)


FILE_KINDS = (
    a_damaged_checkpoint, damaged_weights, weights_cut_off, a_memory_in_files_cut_off, a_damaged_memory,
    appended_by_two, caches, damaged_data,
)  # fmt: skip
