"""The shell script that looks at a device, on made-up trees, in every shell that is here."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from hdap_tui.facts import Facts, asking, parse, pythons
from hdap_tui.facts.script import LOOK

SHELLS = [shell for shell in ("sh", "dash", "busybox", "mksh", "bash") if shutil.which(shell)]
USUAL = {
    "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "proc/meminfo": "MemTotal:        8245000 kB\nMemFree:  100 kB\n",
    "proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n",
    "proc/uptime": "1234.56 2000.00\n",
    "proc/self/status": "Name:\tsh\nCpus_allowed_list:\t0-3\n",
    "sys/devices/system/cpu/online": "0-3\n",
}
PI = {
    **USUAL,
    "sys/firmware/devicetree/base/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/cpuinfo": "".join(
        f"processor\t: {n}\nBogoMIPS\t: 108.00\n"
        "Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc asimddp\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
        for n in range(4)
    )
    + "Revision\t: c04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48000\n",
    "sys/class/hwmon/hwmon1/name": "rp1_adc\n",
    "sys/class/hwmon/hwmon1/temp1_input": "45000\n",
}
JETSON = {
    **USUAL,
    "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.4 LTS"\n',
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/cpuinfo": "".join(
        f"processor\t: {n}\nFeatures\t: asimd asimdhp asimddp\n"
        "CPU implementer\t: 0x41\nCPU part\t: 0xd42\n\n"
        for n in range(6)
    ),
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_governor": "performance\n",
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon3/curr1_input": "800\n",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_GPU_CV\n",
    "sys/class/hwmon/hwmon3/curr2_input": "300\n",
    "sys/fs/cgroup/user.slice/job/cpu.max": "250000 100000\n",
    "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
    "proc/self/cgroup": "0::/user.slice/job\n",
}
SERVER = {
    **USUAL,
    "sys/class/dmi/id/sys_vendor": "Dell Inc.\n",
    "sys/class/dmi/id/product_name": "PowerEdge R650\n",
    "proc/cpuinfo": (
        "processor\t: 0\nmodel name\t: Intel(R)  Xeon(R) Gold 6338 CPU @ 2.00GHz\n"
        "flags\t\t: fpu sse4_1 avx avx2 fma avx512f avx512bw avx512vl avx512_vnni\n\n"
        "processor\t: 1\nmodel name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz\n"
        "flags\t\t: fpu avx2\n\n"
    ),
    "sys/firmware/acpi/platform_profile": "balanced\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference": "balance_power\n",
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "123\n",
    "proc/self/cgroup": "4:cpu,cpuacct:/a\n",
    "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
}
TOOLS = ("sed", "grep", "head", "tail", "cat", "uname", "date", "df", "sort", "uniq", "readlink")


def tree(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def program(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def look(
    root: Path | str = "", shell: str = "sh", path: Path | None = None, home: Path | None = None
) -> Facts:
    """Run the script on a tree; `path` holds programs that go before (or instead of) the usual."""
    command = [shutil.which(shell) or shell, *(["ash"] if shell == "busybox" else [])]
    done = subprocess.run(
        [*command, "-c", LOOK, "hdap", str(root)],
        env={
            "PATH": f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin",
            "HOME": str(home or "/"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return parse(done.stdout, now=0.0)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_raspberry_pi_is_known_by_its_cores(tmp_path: Path, shell: str) -> None:
    tools = tmp_path / "bin"
    program(
        tools, "vcgencmd", '[ "$1" = pmic_read_adc ] && echo "EXT5V_V volt(24)=5.1V 3V7_A current"'
    )
    facts = look(tree(tmp_path / "root", PI), shell, tools)
    assert facts["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts["cpu_model"] == "Cortex-A76"
    assert facts["isa"] == ["asimd", "asimdhp", "asimddp"]
    assert (facts["dot_product"], facts["vnni"]) == (True, False)
    assert (facts["cores"], facts["cores_usable"]) == (4, 4)
    assert facts["memory_mb"] == 8442
    assert facts["governor"] == "ondemand"
    assert facts["sensors"] == ["PMIC", "chip rp1_adc", "zone cpu-thermal"]
    assert facts["boot_id"] == "11111111-2222-3333-4444-555555555555"
    assert facts["os"] == "Debian GNU/Linux 12 (bookworm)"
    assert "power_mode" not in facts


@pytest.mark.parametrize("shell", SHELLS)
def test_a_jetson_has_rails_a_power_mode_and_a_quota(tmp_path: Path, shell: str) -> None:
    tools = tmp_path / "bin"
    program(tools, "nvpmodel", "echo 'NV Power Mode: 15W'; echo 1")
    program(
        tools,
        "uname",
        "case $1 in -m) echo aarch64 ;; -r) echo 5.15.136-tegra ;; *) echo x ;; esac",
    )
    facts = look(tree(tmp_path / "root", JETSON), shell, tools)
    assert facts["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (facts["machine"], facts["kernel"]) == ("aarch64", "5.15.136-tegra")
    assert facts["cpu_model"] == "Cortex-A78AE"
    assert (facts["cores"], facts["cores_usable"]) == (6, 2.5)
    assert facts["power_mode"] == "15W"
    assert facts["governor"] == "performance + schedutil"
    assert facts["sensors"] == ["rail ina3221 VDD_CPU_GPU_CV", "rail ina3221 VDD_IN"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_server_has_dmi_flags_and_rapl(tmp_path: Path, shell: str) -> None:
    facts = look(tree(tmp_path, SERVER), shell)
    assert facts["board"] == "Dell Inc. PowerEdge R650"
    assert facts["cpu_model"] == "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"
    assert facts["isa"] == [
        "sse4_1",
        "avx",
        "avx2",
        "fma",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512_vnni",
    ]
    assert (facts["vnni"], facts["dot_product"]) == (True, False)
    assert (facts["cores"], facts["cores_usable"]) == (2, 1.5)
    assert (facts["power_mode"], facts["governor"]) == ("balanced", "powersave")
    assert facts["sensors"] == ["RAPL package-0"]


def test_the_libc_is_told_by_whatever_names_it(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    program(tools, "getconf", "echo 'glibc 2.31'")
    assert look(tmp_path, path=tools)["libc"] == "glibc 2.31"
    program(tools, "getconf", "exit 1")
    program(tools, "ldd", "echo 'ldd (Ubuntu GLIBC 2.35-0ubuntu3.8) 2.35'")
    assert look(tmp_path, path=tools)["libc"] == "glibc 2.35"
    program(tools, "ldd", "echo 'musl libc (aarch64)' >&2; exit 1")
    program(
        tmp_path / "lib",
        "ld-musl-aarch64.so.1",
        "printf 'musl libc\\nVersion 1.2.4\\n' >&2; exit 1",
    )
    assert look(tmp_path, path=tools)["libc"] == "musl 1.2.4"


def test_its_pythons_are_listed_with_what_they_can_do(tmp_path: Path) -> None:
    found = pythons(look(path=tmp_path))
    system = [one for one in found if one.path.startswith("/usr/bin/")]
    if not system:
        pytest.skip("this machine has no Python in /usr/bin")
    assert system[0].version >= (3, 8, 0)
    assert system[0].abi.startswith("cpython-")
    assert len({(one.version, one.path) for one in found}) == len(found)


def test_a_python_that_hangs_or_is_broken_costs_only_itself(tmp_path: Path) -> None:
    program(tmp_path, "python3", "exit 127")
    program(tmp_path, "python3.9", "echo 'python=oops'; echo nonsense; exit 3")
    facts = look(path=tmp_path)
    assert facts["machine"]
    assert all(one.path.startswith("/") for one in pythons(facts))


@pytest.mark.parametrize("shell", SHELLS)
def test_a_runner_that_hangs_ends_on_the_device(tmp_path: Path, shell: str) -> None:
    program(tmp_path, "python3", "echo $$ >pid; exec sleep 60")
    (tmp_path / ".hdap" / "runner").mkdir(parents=True)
    (tmp_path / ".hdap" / "runner" / "r.py").touch()
    command = [shutil.which(shell) or shell, *(["ash"] if shell == "busybox" else [])]
    script = asking._BOTH.replace(LOOK, "echo machine=x\n" + LOOK.partition("echo ")[0])
    script = script.replace(f"seconds={asking._RUNNER_S}", "seconds=1")
    subprocess.run(
        [*command, "-c", script, "hdap", "", "python3", "runner/r.py"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path,
        timeout=30,
        check=True,
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_bare_tree_gives_missing_keys_and_no_error(tmp_path: Path, shell: str) -> None:
    facts = look(tmp_path, shell)
    assert "board" not in facts
    assert "cores" not in facts
    assert "governor" not in facts
    assert facts["machine"]


def test_it_reads_only(tmp_path: Path) -> None:
    root, home = tree(tmp_path / "root", PI), tmp_path / "home"
    home.mkdir()
    before = sorted(path for path in tmp_path.rglob("*"))
    look(root, home=home)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_what_makes_no_sense_is_no_fact() -> None:
    facts = parse(
        "machine=x86_64\nprocessors=many\nmemory_kb=-3 kB\nonline=0-99999999\nquota=x y\n"
        "uptime=nan\ndisk=what?\nlibc=some words\nnot a line\n=empty\nboard\nbits=64\n"
        "python=3.11|x\npython=99999.1.1|a|b|/p\ngovernor=\x1b[2Jondemand\n" + "zone=a\n" * 9000
    )
    assert facts == {
        "machine": "x86_64", "bits": 64, "governor": "[2Jondemand", "sensors": ["zone a"],
        "pythons": ["3.11|x", "99999.1.1|a|b|/p"],
    }  # fmt: skip
    assert pythons(facts) == ()


def test_long_and_hostile_text_is_cut_and_cleaned() -> None:
    facts = parse(f"machine=arm\nvendor=None\nproduct={'x' * 10**6}\nhostname=a\u202eb\x07c\n")
    assert len(str(facts["board"])) == 120
    assert facts["hostname"] == "abc"
    assert parse("\0" * 1000 + "=" * 1000) == {}
