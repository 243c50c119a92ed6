"""The demonstration's report."""

from __future__ import annotations

from typing import Any

from hdap_tui.context import Context, Outcome
from hdap_tui.demo import Findings, run
from hdap_tui.errors import ExitCode
from hdap_tui.names import cluster_letter
from hdap_tui.progress import duration


def demo(context: Context, devices: int = 12) -> Outcome:
    """Run the whole job on a fresh emulated lab, from the first sweep to the proof."""
    found = run(context, devices)
    return Outcome(
        data=_document(found),
        text=_text(found),
        exit_code=ExitCode.DONE if found.faster else ExitCode.FAILED,
    )


def _document(found: Findings) -> dict[str, Any]:
    alert, job, result = found.alert, found.job, found.result
    metrics = dict(job.result["metrics"]) if job else {}
    return {
        "emulated": True,
        "devices": len(found.lab.devices),
        "clusters": [
            {"id": c.id, "size": c.size, "representative": c.representative, "note": c.note}
            for c in found.map.clusters
        ],
        "agreement_with_the_lab": found.agreement,
        "drift": {
            "device": found.stepped,
            "made_slower_percent": found.step_percent,
            "alert_subject": alert.subject if alert else None,
            "alert_percent": alert.size_percent if alert else None,
            "rounds_to_alert": found.rounds_to_alert,
        },
        "model": job.result["model"] if job else None,
        "metrics": metrics,
        "models": [made["model"] for made in job.result["models"]] if job else [],
        "speedup": result.speedup if result else None,
        "low": result.low if result else None,
        "high": result.high if result else None,
        "verdict": result.verdict if result else None,
        "mean_before_ms": result.mean_before_ms if result else None,
        "mean_after_ms": result.mean_after_ms if result else None,
        "faster_on": result.faster if result else 0,
        "switched": sum(report.row.switched for report in found.reports),
        "seconds": {name: round(value, 1) for name, value in found.seconds.items()},
        "seconds_in_all": round(sum(found.seconds.values()), 1),
    }


def _text(found: Findings) -> str:
    lines = [f"{len(found.lab.devices)} emulated devices on real SSH servers of this machine", ""]
    lines += _clusters(found) + _drift(found) + _model(found) + _proof(found)
    lines += ["Time taken"]
    lines += [f"  {name:<26} {duration(value)}" for name, value in found.seconds.items()]
    lines += [f"  {'in all':<26} {duration(sum(found.seconds.values()))}"]
    return "\n".join(lines)


def _clusters(found: Findings) -> list[str]:
    lines = ["Which devices behave alike (measured)"]
    for cluster in found.map.clusters:
        who = f"{cluster.size:>2} devices, {cluster.representative} stands for them"
        head = f"  {cluster_letter(cluster.id)}  {who}"
        lines.append(head + (f": {cluster.note}" if cluster.note else ""))
    noise = sum(label < 0 for label in found.map.labels)
    if noise:
        lines.append(f"  -  {noise:>2} devices like no other")
    return [*lines, f"  agreement with the lab's own groups: ARI {found.agreement:.2f}", ""]


def _drift(found: Findings) -> list[str]:
    if found.alert is None:
        return []
    alert = found.alert
    return [
        "Drift (measured)",
        f"  {found.stepped} was made {found.step_percent:g} % slower; after "
        f"{found.rounds_to_alert} rounds an alert said:",
        f"  {alert.subject}: {alert.kind}, {alert.baseline_ms:.3f} ms -> {alert.now_ms:.3f} ms "
        f"({alert.size_percent:+.1f} %)",
        "",
    ]


def _model(found: Findings) -> list[str]:
    if found.job is None:
        return []
    return [line for made in found.job.result["models"] for line in _made(made)]


def _made(made: dict[str, Any]) -> list[str]:
    metrics = made["metrics"]
    before, after = metrics["parameters_before"], metrics["parameters_after"]
    lines = [
        f"The new model: {made['model']} ({metrics['precision']})",
        f"  parameters {before} -> {after}, MACs {metrics['macs_before']:.3g} -> "
        f"{metrics['macs_after']:.3g}",
        f"  test accuracy {metrics['test_accuracy_before']:.2%} -> {metrics['test_accuracy']:.2%}",
    ]
    predicted = metrics.get("search", {}).get("predicted_speedup")
    if predicted is not None:
        lines.append(f"  predicted by the surrogates: {predicted:.2f}x (fp32)")
    measured = ", ".join(f"{k} {v:.2f}x" for k, v in metrics["measured_speedups"].items())
    return [*lines, f"  measured on the representatives: {measured}", ""]


def _proof(found: Findings) -> list[str]:
    result = found.result
    if result is None:
        return ["Not deployed.", ""]
    states = ", ".join(report.row.state for report in found.reports)
    lines = [f"Old against new, side by side on every device (measured): {states}"]
    for report in found.reports:
        for name, one in report.comparisons.items():
            old, new = report.latencies[name]
            lines.append(
                f"  {name:<10} {old.median_ms:8.3f} ms -> {new.median_ms:7.3f} ms   "
                f"{one.speedup:5.2f}x ({one.low:.2f} to {one.high:.2f})  {one.verdict}"
            )
        lines += [f"  {error}" for error in report.errors.values()]
    return [
        *lines,
        f"  fleet mean {result.speedup:.2f}x, 95 % interval {result.low:.2f} to "
        f"{result.high:.2f}: {result.verdict} (emulated devices)",
        "",
    ]
