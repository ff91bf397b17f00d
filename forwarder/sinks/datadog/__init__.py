"""Datadog: `points` says what an event becomes there, `tags` what names and tags may look like, `dogstatsd` and `api`
are the two ways in.
"""
