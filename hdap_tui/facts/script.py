"""The shell script that looks at a device: any POSIX shell, reads only, one line a find.

    sh -c "$LOOK" hdap [ROOT [PYTHON]]

It needs no Python, no root and nothing but the usual small tools; what a device lacks is a line
that is missing. ROOT is a folder that stands for "/" in /proc, /sys and /etc (for the tests);
PYTHON is asked besides the usual ones. What can be long is cut here, what can hang has a limit.
"""

from __future__ import annotations

_ABOUT_PYTHON = """
import sys
from importlib.machinery import EXTENSION_SUFFIXES as suffixes
from importlib.util import find_spec
has = [name for name in ("venv", "ensurepip") if find_spec(name)]
abi = suffixes[0].split(".")[1] if suffixes and suffixes[0].count(".") > 1 else ""
print("python=%d.%d.%d|%s|%s|%s" % (sys.version_info[:3] + (abi, ",".join(has), sys.argv[1])))
"""

LOOK = rf"""
R=${{1:-}} seconds=5
one() {{
  value=; [ -r "$R$2" ] || return 0
  IFS= read -r value 2>/dev/null <"$R$2"
  [ -z "$value" ] || printf '%s=%s\n' "$1" "$value"
}}
line() {{ sed -n "/^$2[[:space:]]*:/{{s/^[^:]*:[[:space:]]*/$1=/p;q;}}" "$R$3" 2>/dev/null; }}
if command -v timeout >/dev/null 2>&1 && timeout 5 true 2>/dev/null
then limited() {{ timeout "$seconds" "$@" </dev/null 2>/dev/null; }}
else limited() {{ "$@" </dev/null 2>/dev/null; }}
fi
echo "machine=$(uname -m)"; echo "system=$(uname -s)"
echo "kernel=$(uname -r)"; echo "hostname=$(uname -n)"
one tree /sys/firmware/devicetree/base/model
one tree /proc/device-tree/model
one vendor /sys/class/dmi/id/sys_vendor; one product /sys/class/dmi/id/product_name
sed -n 's/^PRETTY_NAME=/os=/p' "$R/etc/os-release" 2>/dev/null | head -n 1
sed -n 's/^DISTRIB_DESCRIPTION=/os=/p' "$R/etc/openwrt_release" 2>/dev/null | head -n 1

info=/proc/cpuinfo
line cpu 'model name' $info; line cpu uarch $info; line cpu Hardware $info; line cpu Model $info
line flags flags $info; line flags Features $info; line flags isa $info
sed -n -e 's/^CPU implementer[^:]*: */implementer=/p' -e 's/^CPU part[^:]*: */part=/p' \
  "$R$info" 2>/dev/null | head -n 1024
echo "processors=$(grep -c '^processor' "$R$info" 2>/dev/null)"
one online /sys/devices/system/cpu/online
line allowed Cpus_allowed_list /proc/self/status
group=$(sed -n 's/^0:://p' "$R/proc/self/cgroup" 2>/dev/null | head -n 1)
while :; do
  one quota "/sys/fs/cgroup${{group%/}}/cpu.max"
  [ -n "${{group%/}}" ] || break
  group=${{group%/*}}
done
group=$(sed -n 's/^[0-9]*:[a-z,]*cpu[a-z,]*:\//\//p' "$R/proc/self/cgroup" 2>/dev/null | tail -n 1)
for old in "/sys/fs/cgroup/cpu${{group%/}}" /sys/fs/cgroup/cpu; do
  [ -r "$R$old/cpu.cfs_quota_us" ] || continue
  echo "quota=$(cat "$R$old/cpu.cfs_quota_us") $(cat "$R$old/cpu.cfs_period_us")"; break
done
line memory_kb MemTotal /proc/meminfo
echo "disk=$(limited df -Pk "${{HOME:-.}}" | sed -n '$p')"
one boot_id /proc/sys/kernel/random/boot_id
one uptime /proc/uptime
echo "clock=$(date +%s)"
echo "bits=$(getconf LONG_BIT 2>/dev/null)"

libc=$(getconf GNU_LIBC_VERSION 2>/dev/null)
if [ -n "$libc" ]; then echo "libc=$libc"; else
  limited ldd --version >/dev/null && echo "libc=$(ldd --version 2>/dev/null | head -n 1)"
  for loader in "$R"/lib/ld-musl-*.so.1; do
    [ -x "$loader" ] && "$loader" 2>&1 </dev/null | sed -n 's/^Version /libc=musl /p'
  done
  for loader in "$R"/lib/ld-uClibc*.so.0; do [ -e "$loader" ] && echo "libc=uclibc"; done
fi

mode=
command -v nvpmodel >/dev/null 2>&1 &&
  mode=$(limited nvpmodel -q | sed -n 's/^NV Power Mode: *//p' | head -n 1)
[ -n "$mode" ] && echo "power_mode=$mode"
one power_mode /sys/firmware/acpi/platform_profile
for policy in "$R"/sys/devices/system/cpu/cpufreq/policy* "$R"/sys/devices/system/cpu/cpu*/cpufreq
do
  [ -d "$policy" ] || continue
  policy=${{policy#"$R"}}
  one governor "$policy/scaling_governor"
  one preference "$policy/energy_performance_preference"
done | sort | uniq | head -n 16

for zone in "$R"/sys/class/thermal/thermal_zone*; do
  [ -r "$zone/temp" ] && one zone "${{zone#"$R"}}/type"
done | head -n 32
for chip in "$R"/sys/class/hwmon/hwmon*; do
  value=; IFS= read -r value 2>/dev/null <"$chip/name" || [ -n "$value" ] || continue
  name=$value
  [ -r "$chip/temp1_input" ] && echo "chip=$name"
  for input in "$chip"/curr[0-9]*_input "$chip"/power[0-9]*_input "$chip"/power[0-9]*_average; do
    [ -r "$input" ] || continue
    rail=${{input##*/}}; rail=${{rail%_*}}; number=${{rail#power}}; number=${{number#curr}}
    value=
    for label in "in$number" "$rail"; do
      [ -n "$value" ] || IFS= read -r value 2>/dev/null <"$chip/${{label}}_label"
    done
    echo "rail=$name ${{value:-$rail}}"
  done
done 2>/dev/null | head -n 32
for label in "$R"/sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*; do
  value=; [ -r "$label" ] && IFS= read -r value <"$label"; [ -n "$value" ] &&
    echo "rail=ina3221x $value"
done 2>/dev/null | head -n 16
for zone in "$R"/sys/class/powercap/*rapl:*; do
  [ -e "$zone/energy_uj" ] || continue
  value=; IFS= read -r value 2>/dev/null <"$zone/name"
  if [ -r "$zone/energy_uj" ]; then echo "rapl=$value"; else echo "rapl=$value (root only)"; fi
done | head -n 16
command -v vcgencmd >/dev/null 2>&1 && limited vcgencmd pmic_read_adc | grep -q current &&
  echo "pmic=vcgencmd"

seen=:
about='{_ABOUT_PYTHON}'
for python in "${{2:-}}" "$HOME/.hdap/environment/bin/python" python3 python3.14 python3.13 \
  python3.12 python3.11 python3.10 python3.9 python3.8 python "$HOME"/.pyenv/versions/*/bin/python3
do
  case $python in "~/"*) python=$HOME/${{python#??}} ;; esac
  path=$(command -v "$python" 2>/dev/null) && [ -x "$path" ] || continue
  case $path in */shims/*) continue ;; esac  # a slow script that starts one of the others
  real=$path
  case $path in
    */environment/*) ;;
    *) real=$(readlink -f "$path" 2>/dev/null || echo "$path") ;;
  esac
  case $seen in *":$real:"*) continue ;; esac
  seen="$seen$real:"
  limited "$path" -I -S -c "$about" "$path"
done | head -n 16
true
"""
