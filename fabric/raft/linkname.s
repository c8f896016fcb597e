// Empty: its presence lets lookupRaftNode be declared without a body.
