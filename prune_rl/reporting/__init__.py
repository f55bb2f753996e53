"""From records to tables and pictures; measures nothing."""
