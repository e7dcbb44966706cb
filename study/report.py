"""Writes what the study found: to come."""


def write(results, scale_name, report_dir):
    """Writes the tables."""
    report_dir.mkdir(parents=True, exist_ok=True)
    for name in ("gap", "curves", "ingredients", "reliability", "sizes", "exported"):
        getattr(results, name).to_csv(report_dir / f"{name}.csv", index=False)
