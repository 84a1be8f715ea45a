"""The gate: did something get slower, larger or less accurate between two revisions, or between two result files?"""
