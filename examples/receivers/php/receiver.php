<?php
// A receiver of callbacks. composer require standard-webhooks/standard-webhooks
// CALLBACK_KEY=whsec_… php -d enable_post_data_reading=0 -S 127.0.0.1:9000 receiver.php
// On the command line, `php receiver.php` finishes what a crash left: run it by cron.
declare(strict_types=1);

require __DIR__ . '/vendor/autoload.php';

const FOLDER = 'callbacks'; // <id> is a callback as it came, <id>.done says that it is handled
const MAX_BODY = 32 << 20; // a result of 8 MiB is up to three times as long when it is encoded
const MIN_KEY = 38; // whsec_ and 24 bytes: an empty key would verify what anybody signs
const TASK_ID = '/\A[0-9a-f-]{36}\z/';
const VERBS = ['COMPLETE' => 'is done', 'FAILED' => 'has failed', 'TIMEOUT' => 'took too long'];

/** Where your own work goes. After a crash it can run again for the same task. */
function finish(string $id, string $status, array $pairs): void
{
    $out = "task $id " . VERBS[$status] . "\n";
    foreach ($pairs as [$name, $value]) {
        $out .= "$name=$value\n";
    }
    file_put_contents('php://stdout', $out);
}

/** Not $_POST: it renames what has a dot, and keeps one of the pairs with one name. */
function pairs(string $body): array
{
    $pairs = [];
    foreach (explode('&', $body) as $pair) {
        if ($pair !== '') {
            $pairs[] = array_map(urldecode(...), explode('=', $pair, 2) + [1 => '']);
        }
    }
    return $pairs;
}

/** Stores a callback, on disk before it returns; whether it is the first with its ID. */
function keep(string $id, string $record): bool
{
    $tmp = FOLDER . '/.tmp-' . bin2hex(random_bytes(16));
    $file = fopen($tmp, 'x');
    try {
        if (!$file || fwrite($file, $record) !== strlen($record) || !fflush($file) || !fsync($file)) {
            throw new RuntimeException("writing $tmp");
        }
        if (@link($tmp, FOLDER . "/$id")) { // fails if it is there
            return true;
        }
        if (!file_exists(FOLDER . "/$id")) {
            throw new RuntimeException("storing $id");
        }
        return false;
    } finally {
        @unlink($tmp);
    }
}

/** Finishes a stored task, unless that has been done. */
function handle(string $id): void
{
    if (!file_exists(FOLDER . "/$id.done")) {
        [$status, $body] = explode("\n", file_get_contents(FOLDER . "/$id"), 2);
        finish($id, $status, pairs($body));
        touch(FOLDER . "/$id.done");
    }
}

function receive(): int
{
    if ($_SERVER['REQUEST_METHOD'] !== 'POST') {
        return 405;
    }
    $body = file_get_contents('php://input', length: MAX_BODY + 1);
    if (strlen($body) > MAX_BODY) {
        return 413;
    }
    $headers = array_change_key_case(getallheaders());
    try { // the signature and its time
        (new StandardWebhooks\Webhook(getenv('CALLBACK_KEY')))->verify($body, $headers);
    } catch (Throwable) {
        return 401;
    }
    $id = $headers['webhook-id'];
    $status = $headers['x-beam-task-status'] ?? '';
    if (!preg_match(TASK_ID, $id) || !isset(VERBS[$status])) {
        return 400;
    }
    try {
        $first = keep($id, "$status\n$body");
    } catch (Throwable $error) {
        error_log($error->getMessage());
        return 500; // it comes again
    }
    http_response_code(204); // a repeat too: we have it
    if (function_exists('fastcgi_finish_request')) {
        fastcgi_finish_request(); // the sender need not wait
    }
    if ($first) {
        handle($id);
    }
    return 204;
}

if (strlen((string) getenv('CALLBACK_KEY')) < MIN_KEY) {
    http_response_code(500);
    error_log('CALLBACK_KEY is not a whsec_ key');
    exit(1);
}
if (!is_dir(FOLDER)) {
    @mkdir(FOLDER, 0700);
}
if (PHP_SAPI === 'cli') {
    foreach (preg_grep(TASK_ID, scandir(FOLDER)) as $id) {
        handle($id);
    }
} else {
    http_response_code(receive());
}
