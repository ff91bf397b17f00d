"""Telling people about changes: one sink, one address.

`memory` what is known and was told; `folding` takes changes into it; `planning` says when something is to be told, and
what; `texts` puts it into words; `mail` and `service` deliver. The first four are pure functions over data.
"""
