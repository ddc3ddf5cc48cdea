"""The mesh protocol: identifiers, messages, records and rounds, as bytes in and bytes out."""
