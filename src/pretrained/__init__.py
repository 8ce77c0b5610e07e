"""Weights from elsewhere: reading their files, translating their names, and loading them without a remainder."""
