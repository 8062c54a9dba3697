"""Find labels that are probably wrong, and write a page to fix them on.

python jobs/audit.py --data-dir data/sample --output-dir audit
python jobs/audit.py --data-dir data/sample --output-dir audit --corrections corrections.csv
flowers-launch jobs/audit.py --data-dir data/flowers102 --output-dir audit
"""

from flowers.cli import run
from flowers.config.audit import AuditConfig


def main(config: AuditConfig) -> int:
    """Audit as the flags say; 0 when done."""
    from flowers.audit.audit import audit

    return audit(config)


def cli() -> None:
    """The console command ``flowers-audit``."""
    run(main, AuditConfig)


if __name__ == "__main__":
    cli()
