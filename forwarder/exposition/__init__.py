"""The proxy's Prometheus page: from its bytes to points that are bounded, anonymous and right.

syntax       one line of text, no state
selection    which series go on, and with which attributes
passed       lines that do not go on, by eight bytes each
series       what is remembered of a series, and what it adds up to
page         the page as a whole: every line to a place in an array, fast from the second reading on
counters     from two readings to deltas: resets, restarts, several processes behind one address
state        what survives a restart of the agent
"""
