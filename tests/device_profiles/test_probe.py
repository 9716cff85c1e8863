"""The probe reads a machine's files; the comparison names what a profile got wrong."""

import os
import platform

from edgekit.device_profiles import contradictions, load_profile, probe

MEMINFO = "MemTotal:        7802880 kB\nMemFree:  1 kB\nMemAvailable:    5000000 kB\n"
CPUINFO = "processor : 0\nFeatures  : fp asimd asimdhp asimddp\nCPU part  : 0xd42\n"


def orin_nano_tree(root):
    for name, text in {
        "proc/meminfo": MEMINFO,
        "proc/cpuinfo": CPUINFO,
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n",
        "dev/nvhost-gpu": "",
        "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "",
        "sys/class/thermal/thermal_zone0/temp": "48500\n",
        "sys/class/thermal/thermal_zone1/temp": "51250\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_agrees_with_the_operating_system():
    found = probe()
    assert found["arch"] == platform.machine()
    assert found["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert found["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < found["memory_available_bytes"] <= found["memory_bytes"]


def test_a_jetson_is_read_from_its_files(tmp_path):
    found = probe(orin_nano_tree(tmp_path))
    assert found["model"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found["memory_bytes"] == 7802880 * 1024
    assert found["cpu"]["features"] == ["asimd", "asimddp", "asimdhp"]
    assert found["nvidia"] == {"l4t": "36.4.3", "tensorrt_libraries": ["10.3.0"]}
    assert found["accelerators"] == {"gpu": 1}
    assert found["temperature_c"] == 51.25


def test_an_empty_machine_gives_no_guesses(tmp_path):
    found = probe(tmp_path)
    assert found["memory_bytes"] == 0
    assert found["accelerators"] == {}
    assert found["temperature_c"] is None


def jetson(**changes):
    found = {
        "arch": "aarch64",
        "os": "linux",
        "cpu": {"features": ["asimd", "asimddp", "asimdhp"], "cores": 6},
        "memory_bytes": 7802880 * 1024,
        "accelerators": {"gpu": 1},
        "nvidia": {"tensorrt_libraries": ["10.3.0"]},
        "engines": {},
    }
    return found | changes


def test_the_right_device_is_not_contradicted():
    assert contradictions(load_profile("jetson-orin-nano"), jetson()) == []


def test_each_false_claim_is_named():
    profile = load_profile("jetson-orin-nano")
    cases = {
        "arch is x86_64": jetson(arch="x86_64"),
        "lacks asimdhp": jetson(cpu={"features": ["asimd", "asimddp"], "cores": 6}),
        "4 CPU cores": jetson(cpu={"features": ["asimd", "asimddp", "asimdhp"], "cores": 4}),
        "memory is 3.7 GiB": jetson(memory_bytes=4_000_000_000),
        "no gpu": jetson(accelerators={}),
        "compute capability is 7.2": jetson(nvidia={"tensorrt_libraries": ["10.3.0"], "gpus": [{"compute_capability": "7.2"}]}),
        "tensorrt is not installed": jetson(nvidia={}),
    }
    for said, found in cases.items():
        assert any(said in line for line in contradictions(profile, found)), said
        assert len(contradictions(profile, found)) == 1, said
