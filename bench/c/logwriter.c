/*
 * What a log costs in plain C: reads N flows from FILE, qsort()s them by source address, destination address, source
 * port and destination port, and fprintf()s one line each to stdout.
 *
 *     logwriter FILE N
 *
 * FILE holds records of twelve bytes, numbers in host byte order. Prints the times on stderr as one JSON object.
 */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct flow {
	uint32_t src, dst;
	uint16_t sport, dport;
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static int compare(const void *x, const void *y)
{
	const struct flow *a = x, *b = y;

	if (a->src != b->src)
		return a->src < b->src ? -1 : 1;
	if (a->dst != b->dst)
		return a->dst < b->dst ? -1 : 1;
	if (a->sport != b->sport)
		return a->sport < b->sport ? -1 : 1;
	return a->dport < b->dport ? -1 : a->dport > b->dport;
}

static void print(int index, const struct flow *f)
{
	char src[INET_ADDRSTRLEN], dst[INET_ADDRSTRLEN];
	struct in_addr source = {htonl(f->src)}, destination = {htonl(f->dst)};

	inet_ntop(AF_INET, &source, src, sizeof src);
	inet_ntop(AF_INET, &destination, dst, sizeof dst);
	fprintf(stdout, " TCPv4 [%12d] src = %s (port=%u) to dst = %s (port=%u) (-)\n", index, src, f->sport, dst, f->dport);
}

int main(int argc, char **argv)
{
	long n = argc == 3 ? atol(argv[2]) : 0;
	double start = now(), sorted;
	struct flow *flows;
	FILE *file;

	if (n < 1 || n > 100000000) {
		fprintf(stderr, "logwriter FILE N\n");
		return 2;
	}
	flows = malloc(n * sizeof *flows);
	file = fopen(argv[1], "rb");
	if (!flows || !file || fread(flows, sizeof *flows, n, file) != (size_t)n) {
		perror("logwriter");
		return 1;
	}
	fclose(file);
	qsort(flows, n, sizeof *flows, compare);
	sorted = now();
	for (long i = 0; i < n; i++)
		print(i, &flows[i]);
	if (fflush(stdout)) {
		perror("logwriter");
		return 1;
	}
	fprintf(stderr, "{\"n\": %ld, \"sort\": %.4f, \"print\": %.4f}\n", n, sorted - start, now() - sorted);
	free(flows);
	return 0;
}
