"""The version of the product, as dead letters and logs state it."""

VERSION = "0.1.0"
