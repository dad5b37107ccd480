/* For linux.uml on processors with AMX.

   User-Mode Linux 6.1 keeps 2,696 bytes of what a process has in extended registers, as much as AVX-512 needs. Where
   the processor has AMX too, the kernel below takes no less than the whole, and refuses: "ptrace set fp regs failed,
   errno = 14", and no process of the machine starts. This library, loaded before libc, gives it the whole: what UML
   kept, and the rest as it is. No header is included, so that any C compiler is enough. */

enum { GETREGSET = 0x4204, SETREGSET = 0x4205, XSTATE = 0x202, ROOM = 64 << 10 };

struct piece { /* struct iovec */
    char *at;
    unsigned long length;
};

void *dlsym(void *where, const char *name);

long ptrace(int request, long process, long address, struct piece *data)
{
    static long (*next)(int, long, long, struct piece *);
    static char whole[ROOM]; /* UML's stacks are small, and it is one thread */
    struct piece all = { whole, ROOM };
    unsigned long n;
    long done;

    if (!next)
        next = dlsym((void *)-1L /* RTLD_NEXT */, "ptrace");
    done = next(request, process, address, data);
    if (done == 0 || request != SETREGSET || address != XSTATE)
        return done;
    if (next(GETREGSET, process, XSTATE, &all) || all.length <= data->length)
        return next(request, process, address, data);
    for (n = 0; n < data->length; n++)
        whole[n] = data->at[n];
    return next(SETREGSET, process, XSTATE, &all);
}
