"""What processors are called, and which of their instructions matter here.

Arm's processors say only numbers; the names are those of Arm's and the makers' own manuals, as the
kernel (arch/arm64/include/asm/cputype.h) and util-linux (lscpu-arm.c) list them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ISA = (
    "sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f",
    "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "neon", "vfpv4", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
"""Instructions that decide which kernels run, floating or quantized."""
_VNNI = {"avx_vnni", "avx512_vnni", "avx_vnni_int8"}

_ARM = {
    0xB76: "ARM1176", 0xC05: "Cortex-A5", 0xC07: "Cortex-A7", 0xC08: "Cortex-A8",
    0xC09: "Cortex-A9", 0xC0D: "Cortex-A12", 0xC0E: "Cortex-A17", 0xC0F: "Cortex-A15",
    0xD01: "Cortex-A32", 0xD02: "Cortex-A34", 0xD03: "Cortex-A53", 0xD04: "Cortex-A35",
    0xD05: "Cortex-A55", 0xD06: "Cortex-A65", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
    0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77", 0xD0E: "Cortex-A76AE", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE", 0xD43: "Cortex-A65AE", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510",
    0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4A: "Neoverse-E1",
    0xD4B: "Cortex-A78C", 0xD4C: "Cortex-X1C", 0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4",
    0xD83: "Neoverse-V3AE", 0xD84: "Neoverse-V3", 0xD85: "Cortex-X925", 0xD87: "Cortex-A725",
    0xD89: "Cortex-A720AE", 0xD8E: "Neoverse-N3",
}  # fmt: skip
_OTHERS = {
    (0x42, 0x516): "ThunderX2", (0x43, 0x0A1): "ThunderX", (0x43, 0x0AF): "ThunderX2",
    (0x46, 0x001): "A64FX", (0x48, 0xD01): "Kunpeng-920", (0x4E, 0x000): "Denver",
    (0x4E, 0x003): "Denver 2", (0x4E, 0x004): "Carmel", (0x51, 0x800): "Kryo 2xx Gold",
    (0x51, 0x801): "Kryo 2xx Silver", (0x51, 0x802): "Kryo 3xx Gold",
    (0x51, 0x803): "Kryo 3xx Silver", (0x51, 0x804): "Kryo 4xx Gold",
    (0x51, 0x805): "Kryo 4xx Silver", (0x51, 0xC00): "Falkor", (0x51, 0x001): "Oryon",
    (0x61, 0x022): "Icestorm M1", (0x61, 0x023): "Firestorm M1", (0x61, 0x032): "Blizzard M2",
    (0x61, 0x033): "Avalanche M2", (0xC0, 0xAC3): "Ampere-1", (0xC0, 0xAC4): "Ampere-1a",
}  # fmt: skip
_MAKERS = {
    0x41: "Arm", 0x42: "Broadcom", 0x43: "Cavium", 0x44: "DEC", 0x46: "Fujitsu", 0x48: "HiSilicon",
    0x4E: "NVIDIA", 0x50: "APM", 0x51: "Qualcomm", 0x53: "Samsung", 0x56: "Marvell", 0x61: "Apple",
    0x66: "Faraday", 0x69: "Intel", 0x6D: "Microsoft", 0x70: "Phytium", 0xC0: "Ampere",
}  # fmt: skip
_ARM_LTD = 0x41


def arm_names(cores: Iterable[tuple[str, str]]) -> str:
    """Return the names of Arm's cores by their (implementer, part), each kind once.

    >>> arm_names([("0x41", "0xd05"), ("0x41", "0xd05"), ("0x41", "0xd0b")])
    'Cortex-A55 + Cortex-A76'
    """
    return " + ".join(dict.fromkeys(filter(None, (_core(*core) for core in cores))))


def matters(flags: Sequence[str]) -> list[str]:
    """Return the flags that matter, in the order of their listing; RISC-V's own word as it is."""
    words = frozenset(flags)
    return [flag for flag in ISA if flag in words] or [w for w in flags if w.startswith("rv")][:1]


def has_vnni(flags: Iterable[str]) -> bool:
    """Tell whether 8-bit numbers are multiplied by VNNI."""
    return not _VNNI.isdisjoint(flags)


def has_dot_product(flags: Iterable[str]) -> bool:
    """Tell whether there is Arm's 8-bit dot product."""
    return "asimddp" in flags


def _core(implementer: str, part: str) -> str:
    try:
        maker, number = int(implementer, 0), int(part, 0)
    except ValueError:
        return ""
    if maker == _ARM_LTD and number in _ARM:
        return _ARM[number]
    if (maker, number) in _OTHERS:
        return _OTHERS[maker, number]
    return f"{_MAKERS.get(maker, f'maker {maker:#x}')} {number:#x}"
