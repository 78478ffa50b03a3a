"""Histories of a folder: what happens to its files, and the runs between, killed or not."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.pipeline.files.installation import COLLECTION, DAY, Installation, paragraphs
from vectorize_pipelines.pipeline.writing import DirectWriter, write_batch
from vectorize_pipelines.state.home import manifest_file


class Killed(Exception):  # noqa: N818 (an event, not an error of the program)
    """Stands for SIGKILL between two effects."""


NAMES = ("a.md", "b.md", "sub/c.txt", "sub/d.md")
#: Each content has a time of its own, so that restoring one restores its time, as a backup does.
CONTENTS = [(1,), (1, 2), (2, 1, 3), (4, 5, 6, 7), (4, 6, 7), tuple(range(20, 60)), (0, *range(20, 60))]

operations = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(NAMES), st.sampled_from(CONTENTS), st.integers(0, 3)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
    st.tuples(st.just("rename"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    st.tuples(st.just("drain")),
    st.tuples(st.just("replay"), st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.just("lose-manifest")),
    st.tuples(st.just("killed"), st.integers(0, 8)),
)


def carry_out(installation: Installation, operation: tuple[Any, ...]) -> None:
    match operation:
        case ("write", name, numbers, day):
            time = DAY + timedelta(days=day, seconds=CONTENTS.index(numbers))
            installation.write(name, paragraphs(*numbers), time)
        case ("delete", name):
            (installation.folder / name).unlink(missing_ok=True)
        case ("rename", old, new):
            if (installation.folder / old).exists():
                (installation.folder / new).parent.mkdir(exist_ok=True)
                (installation.folder / old).replace(installation.folder / new)
        case ("drain",):
            installation.run()
        case ("replay", one, other):
            first, last = sorted((one, other))
            window = (DAY.date() + timedelta(days=first), DAY.date() + timedelta(days=last))
            installation.run(mode="replay", window=window)
        case ("lose-manifest",):
            manifest_file(installation.settings, COLLECTION).unlink(missing_ok=True)
        case ("killed", effects):
            run_until_killed(installation, effects)


def run_until_killed(installation: Installation, effects: int, **changes: Any) -> None:
    """A drain that ends after so many effects on store and manifest."""
    left = effects

    def effect(really: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return really(*arguments)

        return counted

    store = installation.store
    try:
        with installation.open(**changes) as stream:
            for batch in stream:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(stream.source, "announce", effect(stream.source.announce))
                    patch.setattr(stream.source, "acknowledge", effect(stream.source.acknowledge))
                    patch.setattr(store, "upsert", effect(store.upsert))
                    patch.setattr(store, "delete", effect(store.delete))
                    write_batch(DirectWriter(installation.settings, store), batch)
    except Killed:
        pass
