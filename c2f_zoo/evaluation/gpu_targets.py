"""The summary of a check of a GPU: what failed, and the targets beside what was measured."""

from __future__ import annotations

from c2f_zoo.evaluation.sections import Record


def summarize(record: Record) -> list[str]:
    """Return failures, and the targets beside what was measured."""
    content = record.read()
    lines = [f"{name}: {section['error']}" for name, section in content.items() if "error" in section]
    for name, section in content.items():
        rows = section.get("rows", [])
        bad = [row for row in rows if "error" in row or str(row.get("outcome", "")).startswith("failed")]
        lines += [f"{name}: {len(rows)} rows, {len(bad)} failed"] if rows else []
        lines += [f"  {row}" for row in bad]
    mlp = [row for row in record.rows("poolings") if (row["pooling"], row["precision"]) == ("mlp", "bf16")]
    for text, rows, key, variant in (
        ("MLP pooling in bf16, target 2: time of eager / ours", mlp, "ms", "eager"),
        ("MLP pooling in bf16, target 1: time of compiled / ours", mlp, "ms", "compiled"),
        ("MLP pooling in bf16, target 16: memory of eager / ours", mlp, "peak_mib", "eager"),
        ("training step, target 1.3: time of eager / ours", record.rows("step"), "ms", "eager"),
    ):
        found = {(row["variant"], row["batch"]): row.get(key) for row in rows}
        pairs = {
            batch: (value, found.get(("ours", batch))) for (name, batch), value in found.items() if name == variant
        }
        ratios = [f"{value / ours:.2f} at batch {batch}" for batch, (value, ours) in pairs.items() if value and ours]
        lines.append(f"{text}: {', '.join(ratios) or 'not measured'}")
    fed = [f"{row['fed']:.1%} with {row['workers']} workers" for row in record.rows("loader") if "fed" in row]
    return [*lines, f"the loader keeps the GPU busy, target 95%: {', '.join(fed) or 'not measured'}"]
