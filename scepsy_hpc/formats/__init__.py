"""The files that commands exchange: records that load and save themselves."""
