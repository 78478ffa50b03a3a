"""Which device a run gets, and how much memory there is, without a GPU and without this machine's own figures."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.encoders.hardware.devices import cuda_devices, device_of_shard, free_memory, shard_index
from vectorize_pipelines.encoders.hardware.machine import available_memory
from vectorize_pipelines.errors import SettingsError


@pytest.mark.parametrize(("tag", "shard"), [("0/4", 0), ("3/4", 3), (" 1/2 ", 1), ("7", 7), ("0", 0)])
def test_the_tag_of_a_shard(tag: str, shard: int) -> None:
    assert shard_index(tag) == shard


@pytest.mark.parametrize("tag", ["", "4/4", "5/4", "0/0", "-1", "1/", "/4", "one", "1/4/2", "١", "1.5"])
def test_what_is_no_shard(tag: str) -> None:
    with pytest.raises(SettingsError, match=r"vectorize/shard is .* as in 0/4"):
        shard_index(tag)


@given(shard=st.integers(0, 10_000), gpus=st.integers(2, 64), device=st.sampled_from(["auto", "cuda", "CUDA "]))
def test_shards_go_round_the_gpus(shard: int, gpus: int, device: str) -> None:
    assert device_of_shard(device, shard, gpus) == f"cuda:{shard % gpus}"


@pytest.mark.parametrize(
    ("device", "shard", "gpus"),
    [("auto", None, 4), ("auto", 1, 0), ("cuda", 3, 1), ("cuda:2", 1, 4), ("cpu", 1, 4), ("mps", 1, 4)],
)
def test_other_devices_stay(device: str, shard: int | None, gpus: int) -> None:
    assert device_of_shard(device, shard, gpus) == device


def test_this_machine_has_memory_and_says_which_gpus() -> None:
    assert free_memory("cpu") > 2**20
    assert all(isinstance(name, str) for name in cuda_devices())


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, content in {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "kibibytes"),
    [
        ({}, 8000),
        ({"proc/self/cgroup": "0::/\n"}, 8000),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 8000),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "4096000\n",
                "sys/fs/cgroup/a/memory.current": "2048000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 1024000\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "2048000\n",
            },
            3000,
        ),
        (  # in a container the path is the host's, and the container's own group is at the top
            {
                "proc/self/cgroup": "0::/system.slice/docker-1\n",
                "sys/fs/cgroup/memory.max": "1024000\n",
                "sys/fs/cgroup/memory.current": "2048000\n",
            },
            0,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/\n4:memory:/job\n0::/\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2048000\n",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "1024000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1024000\n",
            },
            1000,
        ),
    ],
    ids=["no-groups", "top-group", "no-limit", "limit-above", "container", "version-1"],
)
def test_available_memory(tmp_path: Path, files: dict[str, str], kibibytes: int) -> None:
    assert available_memory(machine(tmp_path, files)) == kibibytes * 1024


def test_without_proc_the_whole_machine_counts(tmp_path: Path) -> None:
    assert available_memory(tmp_path) > available_memory()
