/* What a fake NVIDIA driver library is told: the file named in EXO_GPU_FAKE_NVML, one
 * "device.field=value" a line, read again whenever it changed. Both fakes, NVML's and CUDA's, read
 * the same file. A table that is replaced is kept, since another thread may still read it. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST_DEVICES 64
#define LINE 256

typedef struct { int count; char lines[][LINE]; } Table;

static Table *table;
static struct stat read_as;
static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER;

static void read_table(FILE *file, off_t size) {
    size_t most = (size_t)size / 2 + 2; /* the shortest line is "a=" */
    Table *fresh = calloc(1, sizeof(Table) + most * LINE);
    while (fresh->count < (int)most && fgets(fresh->lines[fresh->count], LINE, file)) {
        char *line = fresh->lines[fresh->count++];
        line[strcspn(line, "\n")] = 0;
    }
    table = fresh;
}

static void reload(void) {
    const char *path = getenv("EXO_GPU_FAKE_NVML");
    struct stat now;
    pthread_mutex_lock(&reading);
    if (!path || stat(path, &now)) {
        table = NULL;
        memset(&read_as, 0, sizeof read_as);
    } else if (now.st_mtim.tv_sec != read_as.st_mtim.tv_sec || now.st_size != read_as.st_size ||
               now.st_mtim.tv_nsec != read_as.st_mtim.tv_nsec || now.st_ino != read_as.st_ino) {
        FILE *file = fopen(path, "r");
        if (file) read_table(file, now.st_size);
        if (file) fclose(file);
        read_as = now;
    }
    pthread_mutex_unlock(&reading);
}

/* The text behind "name=", or NULL. */
static const char *value(const char *name) {
    size_t length = strlen(name);
    Table *now = table;
    for (int i = 0; now && i < now->count; i++)
        if (!strncmp(now->lines[i], name, length) && now->lines[i][length] == '=')
            return now->lines[i] + length + 1;
    return NULL;
}

/* The text behind "owner.name=", or NULL. */
static const char *value_of(const char *owner, const char *name) {
    char full[LINE];
    snprintf(full, LINE, "%s.%s", owner, name);
    return value(full);
}
