/* A fake CUDA driver: it stands where libcuda.so.1 does, with the host's memory as the devices'.
 *
 * It is described by the same file as the fake NVML (../nvml/description.h); of a device it reads
 * uuid, name, pci, capability, memory.total, memory.used, memory.reserved, mig, and further:
 * cuda.speed (the fastest comes first), peer.N (1: may reach device N), cuda.lost_after (calls
 * until every call fails with 999) and cuda.alloc, cuda.free, cuda.write, cuda.read, cuda.copy,
 * cuda.synchronize, cuda.context (only for an error: "!2"). Without a device: cuda.init.
 *
 * As the driver does, it numbers devices FASTEST_FIRST unless CUDA_DEVICE_ORDER is PCI_BUS_ID,
 * and reads CUDA_VISIBLE_DEVICES once: indices, unique prefixes of UUIDs, the list cut silently at
 * its first invalid entry, and one MIG instance at most with nothing beside it. It does not
 * survive a fork. Unlike the driver, it starts afresh when told of another description.
 */
#include "../nvml/description.h"

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100,
       INVALID_DEVICE = 101, INVALID_CONTEXT = 201, ALREADY_ENABLED = 704, NOT_FOUND = 500,
       UNKNOWN = 999 };

#define MOST_BLOCKS 65536

typedef struct { char key[32]; int calls, retained; unsigned long long held; } Device;
typedef struct { char *start; size_t size; Device *device; } Block;
typedef unsigned long long Pointer;

static Device all[MOST_DEVICES], *seen[MOST_DEVICES];
static int all_count, seen_count, owner;
static char description[4096];
static Block blocks[MOST_BLOCKS];
static int block_count;
static _Thread_local Device *current;
static pthread_mutex_t memory = PTHREAD_MUTEX_INITIALIZER;

static const char *of(const Device *device, const char *name) {
    const char *text = value_of(device->key, name);
    return text ? text : "";
}

static double speed(const Device *device) { return atof(of(device, "cuda.speed")); }

static void add(const char *key) {
    memset(&all[all_count], 0, sizeof all[0]);
    snprintf(all[all_count++].key, sizeof all[0].key, "%s", key);
}

/* Whole GPUs in the driver's order, then MIG instances. */
static int list_devices(void) {
    char key[64];
    all_count = 0;
    for (int i = 0; i < MOST_DEVICES; i++) {
        snprintf(key, sizeof key, "%d", i);
        if (value_of(key, "uuid") && !value_of(key, "mig")) add(key);
    }
    const char *order = getenv("CUDA_DEVICE_ORDER");
    if (!order || strcmp(order, "PCI_BUS_ID"))
        for (int i = 1; i < all_count; i++)
            for (int j = i; j > 0 && speed(&all[j]) > speed(&all[j - 1]); j--) {
                Device other = all[j];
                all[j] = all[j - 1];
                all[j - 1] = other;
            }
    int whole = all_count;
    for (int i = 0; i < MOST_DEVICES; i++)
        for (int j = 0; j < 8 && all_count < MOST_DEVICES; j++) {
            snprintf(key, sizeof key, "%d.mig.%d", i, j);
            if (value_of(key, "uuid")) add(key);
        }
    return whole;
}

static Device *named(const char *token, int whole) {
    char *end;
    long index = strtol(token, &end, 10);
    if (end != token && !*end) return index >= 0 && index < whole ? &all[index] : NULL;
    Device *found = NULL;
    for (int i = 0; i < all_count; i++)
        if (*token && !strncasecmp(of(&all[i], "uuid"), token, strlen(token))) {
            if (found) return NULL;
            found = &all[i];
        }
    return found;
}

static void look(void) {
    int whole = list_devices();
    const char *wanted = getenv("CUDA_VISIBLE_DEVICES");
    char text[LINE * 4], *rest = text, *token;
    seen_count = 0;
    if (!wanted) {
        for (int i = 0; i < whole; i++) seen[seen_count++] = &all[i];
        if (!whole && all_count) seen[seen_count++] = &all[0];
        return;
    }
    snprintf(text, sizeof text, "%s", wanted);
    while ((token = strsep(&rest, ","))) {
        Device *device = named(token, whole);
        for (int i = 0; device && i < seen_count; i++)
            if (seen[i] == device) device = NULL;
        if (!device) return;
        if (device >= all + whole) { /* a MIG instance is alone */
            seen[0] = device;
            seen_count = 1;
            return;
        }
        seen[seen_count++] = device;
    }
}

static int ready(void) { return owner == getpid() ? SUCCESS : NOT_INITIALIZED; }

static int refused(Device *device, const char *call) {
    int code = ready();
    if (code) return code;
    if (!device) return INVALID_CONTEXT;
    reload();
    const char *after = value_of(device->key, "cuda.lost_after"), *text;
    if (after && device->calls++ >= atoi(after)) return UNKNOWN;
    text = value_of(device->key, call);
    return text && *text == '!' ? atoi(text + 1) : SUCCESS;
}

int cuInit(unsigned flags) {
    const char *path = getenv("EXO_GPU_FAKE_NVML"), *text;
    (void)flags;
    reload();
    if ((text = value("cuda.init")) && *text == '!') return atoi(text + 1);
    if (owner && owner != getpid()) return NOT_INITIALIZED;
    if (owner && path && !strcmp(path, description)) return SUCCESS;
    look();
    if (!seen_count) return NO_DEVICE;
    snprintf(description, sizeof description, "%s", path ? path : "");
    owner = getpid();
    block_count = 0;
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}

int cuGetErrorName(int code, const char **text) {
    static _Thread_local char name[64];
    snprintf(name, sizeof name, "FAKE_CUDA_ERROR_%d", code);
    *text = name;
    return SUCCESS;
}

int cuGetErrorString(int code, const char **text) {
    static _Thread_local char words[64];
    snprintf(words, sizeof words, "fake CUDA error %d", code);
    *text = words;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    *count = seen_count;
    return ready();
}

static int known(int device) {
    int code = ready();
    return code ? code : device >= 0 && device < seen_count ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return known(ordinal);
}

int cuDeviceGetName(char *target, int size, int device) {
    int code = known(device);
    if (!code) snprintf(target, (size_t)size, "%s", of(seen[device], "name"));
    return code;
}

int cuDeviceGetUuid(unsigned char *target, int device) {
    int code = known(device);
    if (code) return code;
    const char *text = of(seen[device], "uuid");
    text += strcspn(text, "-");
    for (int i = 0; i < 16; i++) {
        unsigned byte = 0;
        while (*text == '-') text++;
        if (sscanf(text, "%2x", &byte) == 1) text += 2;
        target[i] = (unsigned char)byte;
    }
    return SUCCESS;
}

int cuDeviceGetPCIBusId(char *target, int size, int device) {
    int code = known(device);
    if (!code) snprintf(target, (size_t)size, "%s", of(seen[device], "pci"));
    return code;
}

int cuDeviceTotalMem(size_t *bytes, int device) {
    int code = known(device);
    if (!code) *bytes = strtoull(of(seen[device], "memory.total"), NULL, 0);
    return code;
}

int cuDeviceGetAttribute(int *result, int attribute, int device) {
    int code = known(device), major = 0, minor = 0;
    if (code) return code;
    sscanf(of(seen[device], "capability"), "%d.%d", &major, &minor);
    *result = attribute == 75 ? major : attribute == 76 ? minor : 0;
    return SUCCESS;
}

int cuDeviceCanAccessPeer(int *can, int device, int other) {
    char name[64];
    int code = known(device) ? known(device) : known(other);
    if (code) return code;
    snprintf(name, sizeof name, "peer.%s", seen[other]->key);
    *can = atoi(of(seen[device], name));
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(Device **context, int device) {
    int code = known(device);
    if (!code) code = refused(seen[device], "cuda.context");
    if (code) return code;
    seen[device]->retained++;
    *context = seen[device];
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease(int device) {
    int code = known(device);
    if (code) return code;
    return seen[device]->retained-- > 0 ? SUCCESS : INVALID_CONTEXT;
}

int cuCtxSetCurrent(Device *context) {
    current = context;
    return ready();
}

int cuCtxGetCurrent(Device **context) {
    *context = current;
    return ready();
}

int cuCtxSynchronize(void) { return refused(current, "cuda.synchronize"); }

int cuCtxEnablePeerAccess(Device *peer, unsigned flags) {
    (void)flags;
    return peer == current ? ALREADY_ENABLED : ready();
}

static unsigned long long room(const Device *device) {
    unsigned long long total = strtoull(of(device, "memory.total"), NULL, 0);
    unsigned long long used = strtoull(of(device, "memory.used"), NULL, 0) + device->held +
                              strtoull(of(device, "memory.reserved"), NULL, 0);
    return total > used ? total - used : 0;
}

int cuMemGetInfo(size_t *free_bytes, size_t *total) {
    int code = refused(current, "cuda.info");
    if (code) return code;
    *free_bytes = room(current);
    *total = strtoull(of(current, "memory.total"), NULL, 0);
    return SUCCESS;
}

int cuMemAlloc(Pointer *result, size_t size) {
    int code = refused(current, "cuda.alloc");
    if (code) return code;
    if (!size) return INVALID_VALUE;
    pthread_mutex_lock(&memory);
    char *start = size <= room(current) && block_count < MOST_BLOCKS ? calloc(1, size) : NULL;
    if (start) {
        blocks[block_count++] = (Block){start, size, current};
        current->held += size;
        *result = (Pointer)start;
    }
    pthread_mutex_unlock(&memory);
    return start ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemFree(Pointer pointer) {
    int code = refused(current, "cuda.free");
    if (code) return code;
    code = INVALID_VALUE;
    pthread_mutex_lock(&memory);
    for (int i = 0; i < block_count; i++)
        if ((Pointer)blocks[i].start == pointer) {
            blocks[i].device->held -= blocks[i].size;
            free(blocks[i].start);
            blocks[i] = blocks[--block_count];
            code = SUCCESS;
            break;
        }
    pthread_mutex_unlock(&memory);
    return code;
}

static int within(Pointer pointer, size_t size) {
    int found = 0;
    pthread_mutex_lock(&memory);
    for (int i = 0; i < block_count && !found; i++) {
        Pointer start = (Pointer)blocks[i].start;
        found = pointer >= start && pointer + size <= start + blocks[i].size;
    }
    pthread_mutex_unlock(&memory);
    return found;
}

static int moved(const char *call, void *to, const void *from, size_t size, Pointer one, Pointer two) {
    int code = refused(current, call);
    if (code) return code;
    if (!within(one, size) || !within(two, size)) return INVALID_VALUE;
    memmove(to, from, size);
    return SUCCESS;
}

int cuMemcpyHtoD(Pointer target, const void *source, size_t size) {
    return moved("cuda.write", (void *)target, source, size, target, target);
}

int cuMemcpyDtoH(void *target, Pointer source, size_t size) {
    return moved("cuda.read", target, (void *)source, size, source, source);
}

int cuMemcpyDtoD(Pointer target, Pointer source, size_t size) {
    return moved("cuda.copy", (void *)target, (void *)source, size, source, target);
}

int cuMemcpyPeer(Pointer target, Device *to, Pointer source, Device *from, size_t size) {
    if (!to || !from) return INVALID_CONTEXT;
    return moved("cuda.copy", (void *)target, (void *)source, size, source, target);
}

int cuGetProcAddress_v2(const char *symbol, void **found, int version, unsigned long flags,
                        int *status) {
#define HAS(name) {#name, (void *)name}
    static const struct { const char *name; void *function; } table[] = {
        HAS(cuInit), HAS(cuDriverGetVersion), HAS(cuGetErrorName), HAS(cuGetErrorString),
        HAS(cuDeviceGetCount), HAS(cuDeviceGet), HAS(cuDeviceGetName), HAS(cuDeviceGetUuid),
        HAS(cuDeviceGetPCIBusId), HAS(cuDeviceTotalMem), HAS(cuDeviceGetAttribute),
        HAS(cuDeviceCanAccessPeer), HAS(cuDevicePrimaryCtxRetain), HAS(cuDevicePrimaryCtxRelease),
        HAS(cuCtxSetCurrent), HAS(cuCtxGetCurrent), HAS(cuCtxSynchronize),
        HAS(cuCtxEnablePeerAccess), HAS(cuMemGetInfo), HAS(cuMemAlloc), HAS(cuMemFree),
        HAS(cuMemcpyHtoD), HAS(cuMemcpyDtoH), HAS(cuMemcpyDtoD), HAS(cuMemcpyPeer),
        {"cuGetProcAddress", (void *)cuGetProcAddress_v2}};
    (void)flags;
    *found = NULL;
    /* The second form of cuCtxSynchronize came with version 13 and takes a context: not here. */
    if (!strcmp(symbol, "cuCtxSynchronize") && version >= 13000) return NOT_FOUND;
    for (unsigned i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, symbol)) *found = table[i].function;
    if (status) *status = *found ? 0 : 1;
    return *found ? SUCCESS : NOT_FOUND;
}
