//! Where the story goes.
