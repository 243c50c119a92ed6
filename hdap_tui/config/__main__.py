"""``python -m hdap_tui.config`` prints the reference of `fleet.toml` as Markdown."""

import sys

from hdap_tui.config.reference import markdown

if __name__ == "__main__":
    sys.stdout.write(markdown())
