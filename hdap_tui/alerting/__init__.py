"""From what a round measured to an alert that somebody hears of.

`drifting` lets the detectors judge a round and `absence` looks for devices that are silent;
`lifecycle` lets alerts open, grow, recover and resolve, and `silencing` keeps some of them quiet.
`words` says what an alert says, `explaining` why, `subjects` which devices it is about, and
`policy` what is to follow from it. The alerts themselves lie in `hdap_tui.store.alerts`.
"""
