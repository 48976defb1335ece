"""What passes between the rooms and the outside: records, topics, headers, codecs, and the event's schema."""
