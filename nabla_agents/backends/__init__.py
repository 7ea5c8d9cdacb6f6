"""Work that servers do: `ServerRollouts` on any server that reads and returns token ids, and the one HTTP client.

Needs the extra `remote`. The client (`http`) loads no torch, so nothing is imported here.
"""
