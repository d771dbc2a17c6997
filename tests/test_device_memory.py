"""How much memory there is: sizes as text, /proc, control groups of both versions."""

import pytest
import torch

from fastrl.device_memory import available_bytes, parse_bytes, peak_memory_bytes, resident_bytes
from fastrl.errors import UsageError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "text, size",
    [("80GB", 80 * 10**9), ("79.5 GiB", 79.5 * 2**30), ("1000", 1000), ("2mb", 2 * 10**6)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "80 apples", "-1GB", "GB", "0GB"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="80GB or 79GiB"):
        parse_bytes(text)


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


PROC = {
    "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n",
    "proc/self/status": "VmHWM:\t 700 kB\nVmRSS:\t 500 kB\n",
}


def test_the_machine_and_what_the_process_has(tmp_path):
    write(tmp_path, PROC)
    assert available_bytes(CPU, tmp_path) == 4500 * 1024
    assert available_bytes(CPU, tmp_path, sharers=4) == 1500 * 1024
    assert resident_bytes(tmp_path) == 500 * 1024


def test_a_control_group_of_version_2_without_its_page_cache(tmp_path):
    write(tmp_path, PROC)
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/memory.max": "3000000\n",
            "sys/fs/cgroup/a/memory.current": "2500000\n",
            "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 300000\nactive_file 200000\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/b/memory.current": "1\n",
            "sys/fs/cgroup/a/b/memory.stat": "",
        },
    )
    assert available_bytes(CPU, tmp_path) == 3_000_000 - 2_500_000 + 500_000 + 500 * 1024


def test_a_control_group_of_version_1(tmp_path):
    write(tmp_path, PROC)
    write(
        tmp_path,
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1500000\n",
            "sys/fs/cgroup/memory/memory.stat": "total_cache 5\n",
        },
    )
    assert available_bytes(CPU, tmp_path) == 500_000 + 500 * 1024


def test_a_system_that_does_not_say(tmp_path):
    assert available_bytes(CPU, tmp_path) is None


def test_here():
    if not resident_bytes():
        pytest.skip("no /proc")
    assert 10**7 < resident_bytes() <= peak_memory_bytes() < available_bytes(CPU)
