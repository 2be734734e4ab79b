"""The SMS platform, played: traffic with a known truth.

`plan` decides what is sent and what must come out of it, `truth` says what a list of reports means, `signing` signs as
the platform does, `traffic` speaks HTTP. Nothing here uses the product's own join or receiver: it is the outside.
"""
