/* A Vulkan driver that dies (-DCRASH) or never returns when the loader opens it. */
#include <stdlib.h>
#include <unistd.h>

__attribute__((constructor)) static void open_driver(void) {
#ifdef CRASH
    abort();
#else
    for (;;) pause();
#endif
}
