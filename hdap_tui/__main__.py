"""`python -m hdap_tui` is `hdap`."""

from hdap_tui.main import main

main()
