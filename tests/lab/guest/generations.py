"""Print inode and generation number of files: FS_IOC_GETVERSION, ioctl_iflags(2)."""

import fcntl
import os
import struct
import sys

for path in sys.argv[1:]:
    descriptor = os.open(path, os.O_RDONLY)
    answer = bytearray(8)
    fcntl.ioctl(descriptor, 0x80087601, answer)
    print(os.fstat(descriptor).st_ino, struct.unpack("<I", answer[:4])[0])
