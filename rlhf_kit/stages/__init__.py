"""The three stages. They do not know each other: what one leaves on disk, the next reads."""
