// A receiver of callbacks. With com.standardwebhooks:standardwebhooks, as a JAR:
// CALLBACK_KEY=whsec_… java -cp standardwebhooks.jar Receiver.java

import com.standardwebhooks.Webhook;
import com.standardwebhooks.exceptions.WebhookVerificationException;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URLDecoder;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.regex.Pattern;

public class Receiver {
    /** In it, <id> is a callback as it came, and <id>.done says that it is handled. */
    static final Path FOLDER = Path.of("callbacks");
    /** A result of 8 MiB is up to three times as long when it is encoded. */
    static final int MAX_BODY = 32 << 20;
    /** The prefix whsec_ and 24 bytes: an empty key would verify what anybody signs. */
    static final int MIN_KEY = 38;
    static final Pattern TASK_ID = Pattern.compile("[0-9a-f-]{36}");
    static final Map<String, String> VERBS =
            Map.of("COMPLETE", "is done", "FAILED", "has failed", "TIMEOUT", "took too long");

    record Pair(String name, String value) {}

    /** Where your own work goes. After a crash it can run again for the same task. */
    static void finish(String id, String status, List<Pair> pairs) {
        var out = new StringBuilder("task " + id + " " + VERBS.get(status) + "\n");
        for (Pair pair : pairs) {
            out.append(pair.name()).append('=').append(pair.value()).append('\n');
        }
        System.out.writeBytes(out.toString().getBytes(StandardCharsets.UTF_8));
        System.out.flush();
    }

    static List<Pair> pairs(String body) {
        var pairs = new ArrayList<Pair>();
        for (String pair : body.split("&")) {
            int at = pair.indexOf('=');
            if (!pair.isEmpty()) {
                pairs.add(at < 0 ? new Pair(decode(pair), "") : new Pair(decode(pair.substring(0, at)), decode(pair.substring(at + 1))));
            }
        }
        return pairs;
    }

    static String decode(String text) {
        try {
            return URLDecoder.decode(text, StandardCharsets.UTF_8);
        } catch (IllegalArgumentException e) {
            return text; // a lone percent sign: a form that the app itself wrote
        }
    }

    /** Stores a callback, on disk before it returns; whether it is the first with its ID. */
    static boolean keep(String id, String status, byte[] body) throws IOException {
        Path tmp = Files.createTempFile(FOLDER, ".tmp-", "");
        try (var file = FileChannel.open(tmp, StandardOpenOption.WRITE)) {
            for (byte[] part : List.of((status + "\n").getBytes(StandardCharsets.UTF_8), body)) {
                for (var rest = ByteBuffer.wrap(part); rest.hasRemaining(); ) {
                    file.write(rest);
                }
            }
            file.force(true);
            Files.createLink(FOLDER.resolve(id), tmp); // fails if it is there
            return true;
        } catch (FileAlreadyExistsException e) {
            return false;
        } finally {
            Files.delete(tmp);
        }
    }

    /** Finishes a stored task, unless that has been done. */
    static void handle(String id) throws IOException {
        Path done = FOLDER.resolve(id + ".done");
        if (!Files.exists(done)) {
            String[] parts = new String(Files.readAllBytes(FOLDER.resolve(id)), StandardCharsets.UTF_8).split("\n", 2);
            finish(id, parts[0], pairs(parts[1]));
            Files.createFile(done);
        }
    }

    static void answer(HttpExchange request, int code) throws IOException {
        request.sendResponseHeaders(code, -1);
        request.close();
    }

    static void receive(HttpExchange request, Webhook hook) throws IOException {
        if (!request.getRequestMethod().equals("POST")) {
            answer(request, 405);
            return;
        }
        byte[] body = request.getRequestBody().readNBytes(MAX_BODY + 1);
        if (body.length > MAX_BODY) {
            answer(request, 413);
            return;
        }
        var headers = request.getRequestHeaders();
        try { // the signature and its time
            hook.verify(new String(body, StandardCharsets.UTF_8), headers);
        } catch (WebhookVerificationException e) {
            answer(request, 401);
            return;
        }
        String id = headers.getFirst("webhook-id");
        String status = headers.getFirst("x-beam-task-status");
        if (!TASK_ID.matcher(id).matches() || status == null || !VERBS.containsKey(status)) {
            answer(request, 400);
            return;
        }
        boolean first;
        try {
            first = keep(id, status, body);
        } catch (IOException e) {
            System.err.println(e);
            answer(request, 500); // it comes again
            return;
        }
        answer(request, 204); // a repeat too: we have it
        if (first) {
            handle(id);
        }
    }

    public static void main(String[] args) throws IOException {
        String key = System.getenv().getOrDefault("CALLBACK_KEY", "");
        if (key.length() < MIN_KEY) {
            System.err.println("CALLBACK_KEY is not a whsec_ key");
            System.exit(1);
        }
        var hook = new Webhook(key);
        Files.createDirectories(FOLDER);
        try (var kept = Files.list(FOLDER)) { // what a crash left
            for (Path file : kept.toList()) {
                if (TASK_ID.matcher(file.getFileName().toString()).matches()) {
                    handle(file.getFileName().toString());
                }
            }
        }
        int port = Integer.parseInt(System.getenv().getOrDefault("PORT", "9000"));
        var server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), port), 0);
        server.createContext("/", request -> receive(request, hook));
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.start();
    }
}
