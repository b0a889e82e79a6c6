"""Conversations of many turns in which one of several near-identical requests is asked for again."""
