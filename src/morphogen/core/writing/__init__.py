"""Writers: files that are whole or absent under any library, scratch that follows no link, journals."""
