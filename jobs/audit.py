"""Find labels that are probably wrong, and write a page to fix them on; move photos as the corrections say.

python jobs/audit.py --data-dir data/sample --output-dir audit
python jobs/audit.py --data-dir data/sample --output-dir audit --corrections corrections.csv
python jobs/audit.py apply --data-dir data/sample --corrections corrections.csv --move
python jobs/audit.py apply --data-dir data/sample --undo
flowers-launch jobs/audit.py --data-dir data/flowers102 --output-dir audit
"""

import sys

from flowers.cli import run
from flowers.config.audit import ApplyConfig, AuditConfig


def main(config: AuditConfig | ApplyConfig) -> int:
    """Audit, or apply corrections, as the flags say; 0 when done."""
    if isinstance(config, ApplyConfig):
        from flowers.audit.apply import apply

        return apply(config)
    from flowers.audit.audit import audit

    return audit(config)


def cli() -> None:
    """The console command ``flowers-audit``."""
    if sys.argv[1:2] == ["apply"]:
        run(main, ApplyConfig, sys.argv[2:])
    run(main, AuditConfig)


if __name__ == "__main__":
    cli()
